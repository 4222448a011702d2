"""Seconds of steps: on a CPU as they pass, on CUDA between events that are read late."""

import pytest
import torch

from sae_lens_bipolar.runs import step_clock
from sae_lens_bipolar.runs.step_clock import StepClock


def test_steps_on_a_cpu_are_added_to_what_a_run_had(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: now)
    clock = StepClock(torch.device("cpu"), 5.0)
    for seconds in (2.0, 3.0):
        with clock.step():
            now += seconds
        now += 50.0  # between steps nothing is counted
    assert clock.read() == clock.read() == 10.0


class Event:
    """A CUDA event of a device on which a second passes from record to record."""

    now, waits = 0, 0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self, stream: object) -> None:
        Event.now += 1
        self.at = Event.now

    def synchronize(self) -> None:
        Event.waits += 1

    def elapsed_time(self, end: "Event") -> float:
        return 1000.0 * (end.at - self.at)


def test_steps_on_cuda_are_not_waited_for_until_the_sum_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = StepClock(torch.device("cuda"), 5.0)
    for _ in range(3):
        with clock.step():
            pass
    assert Event.waits == 0
    assert clock.read() == clock.read() == 8.0
    assert Event.waits == 1
