"""Ending a recipe after some minutes: the same command goes on from there."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_UNFINISHED = 75  # sysexits.h: try again later


class OutOfTime(SystemExit):
    """The minutes are over; no `except Exception` takes it for an error of a cell."""


@contextmanager
def limited(minutes: float | None) -> Iterator[None]:
    """Raise `OutOfTime` in the block after so many minutes; None: never.

    It may come at any moment, like a Ctrl-C: what is written is written whole, and a training goes
    on from its last checkpoint.
    """
    if minutes is None:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        print(f"\n{minutes:g} minutes are over: the same command goes on", file=sys.stderr)
        raise OutOfTime(EXIT_UNFINISHED)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
