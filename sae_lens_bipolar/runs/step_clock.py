"""Seconds of training steps, measured without waiting for the device at each."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepClock:
    """Adds up the time of steps on one device.

    On CUDA a step lies between two events on the stream: what Python sees of it is only how long it
    took to queue. The events are read when the sum is.

    Args:
        device: where the steps run.
        seconds: the sum to begin with, of a run that is resumed.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0):
        self._device, self._seconds = device, seconds
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """What runs within is counted."""
        if self._device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        stream = torch.cuda.current_stream(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        yield
        end.record(stream)
        self._events.append((begin, end))

    def read(self) -> float:
        """Seconds so far; waits for the last step."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        return self._seconds
