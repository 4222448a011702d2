"""Ctrl-C and SIGTERM: the first ends a command tidily, the second ends it at once."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REMINDER = 0.5  # seconds after which a stop that was swallowed is raised again


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end; no `except Exception` takes it for an error."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 or 143."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` on the first SIGINT or SIGTERM; end the process at once on the second.

    Where a host swallows the exception (there are bare `except:` in what parses SAELens's flags),
    it is raised again until it arrives here. After a stop the process is expected to end: a further
    signal ends it as the system does. Outside the main thread, where Python takes no signals,
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    arrived, reminded = threading.Event(), threading.Event()
    main = threading.get_ident()

    def stop(number: int, _: FrameType | None) -> None:
        if reminded.is_set():
            reminded.clear()
            if not _on_its_way():
                raise Stopped(seen[0])
            return
        if seen:
            os._exit(128 + number)
        seen.append(number)
        _thread.start_new_thread(remind, (number,))  # takes no lock that may be held just now
        raise Stopped(number)

    def remind(number: int) -> None:
        while not arrived.wait(_REMINDER):
            reminded.set()
            if hasattr(signal, "pthread_kill"):  # ends a wait in the system, too
                signal.pthread_kill(main, number)
            else:
                _thread.interrupt_main(signal.Signals(number))

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    except BaseException as error:
        # A host may have turned the interrupt into an error of its own on the way.
        if seen and not isinstance(error, Stopped):
            raise Stopped(seen[0]) from error
        raise
    finally:
        arrived.set()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if seen else handler)


def _on_its_way() -> bool:
    """Whether a stop is being handled: by a `finally` or `except` that the exception passes."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Stopped):
            return True
        error = error.__cause__ or error.__context__
    return False
