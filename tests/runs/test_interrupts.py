"""Signals: the first ends a block tidily, the second ends the process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sae_lens_bipolar.runs.interrupts import Stopped, stoppable


@pytest.fixture(autouse=True)
def handlers_of_this_process() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_raises_what_no_handler_of_errors_takes(
    number: signal.Signals, code: int
) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except Exception:
            pytest.fail("an interrupt is no error")

    with pytest.raises(Stopped, match=number.name) as stop, stoppable():
        work()
    assert stop.value.exit_code == code
    assert signal.getsignal(number) is signal.SIG_DFL  # once more, and the process ends


def test_without_a_signal_the_handlers_are_what_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stoppable():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_that_a_host_turned_into_an_error_is_still_one() -> None:
    def read() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ValueError("reading failed") from None

    with pytest.raises(Stopped), stoppable():
        read()


def test_other_errors_pass_and_other_threads_are_left_alone() -> None:
    with pytest.raises(ValueError, match="plain"), stoppable():
        raise ValueError("plain")
    done = []

    def work() -> None:
        with stoppable():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


TWICE = """
import time
from sae_lens_bipolar.runs.interrupts import Stopped, stoppable
with stoppable():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except Stopped:
        print("tidying", flush=True)
        for _ in range(600):
            time.sleep(0.1)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process_at_once(number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TWICE], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "tidying\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == code


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a forked child: what `work` leaves the process with, 77 if it ends."""
    child = os.fork()
    if child == 0:
        code = 77
        try:
            work()
        except Stopped as stop:
            code = stop.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_stop_that_a_host_swallows_is_raised_again() -> None:
    def work() -> None:
        with stoppable():
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(20)
            with contextlib.suppress(BaseException):  # and more than once
                time.sleep(20)
            time.sleep(20)

    began = time.monotonic()
    assert in_child(work) == 143
    assert time.monotonic() - began < 15


def test_what_is_tidied_up_on_the_way_is_left_in_peace() -> None:
    read, write = os.pipe()

    def work() -> None:
        with stoppable():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(20)
            except KeyboardInterrupt as error:
                try:
                    time.sleep(1.3)  # longer than the stop is waited for
                    os.write(write, b"saved ")
                    raise RuntimeError("interrupted") from error
                finally:
                    time.sleep(1.3)
                    os.write(write, b"closed")

    assert in_child(work) == 130
    os.close(write)
    with os.fdopen(read, "rb") as told:
        assert told.read() == b"saved closed"


def test_the_second_signal_still_ends_at_once_while_a_stop_is_swallowed() -> None:
    def work() -> None:
        with stoppable():
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)

    assert in_child(work) == 143
