"""Large blocks are kept from step to step once a wide SAE trains, and given back on request."""

import subprocess
import sys

import pytest
import torch

from sae_lens_bipolar.sparse import heap

WIDE = torch.empty(1 << 24)  # 64 MiB, never touched


@pytest.fixture(autouse=True)
def as_before():
    yield
    heap.disable()
    heap.enable()


@pytest.mark.parametrize(
    ("parameter", "kept"),
    [(WIDE, True), (torch.empty(1000), False), (torch.empty(1 << 24, device="meta"), False)],
)
def test_it_is_for_wide_parameters_on_a_cpu(parameter: torch.Tensor, kept: bool) -> None:
    heap.disable()
    heap.ask_for(parameter)
    assert not heap.is_kept(), "nobody enabled it"
    heap.enable()
    heap.ask_for(parameter)
    assert heap.is_kept() == kept
    heap.disable()
    assert not heap.is_kept()


def test_without_glibc_nothing_happens(monkeypatch) -> None:
    heap.disable()
    heap.enable()
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    heap._glibc.cache_clear()
    heap.ask_for(WIDE)
    assert not heap.is_kept()
    heap._glibc.cache_clear()


STEPS = """
import resource
import torch
import sae_lens_bipolar
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
from sae_lens_bipolar.runs.step_times import trainer_step
from sae_lens_bipolar.sparse import heap

torch.set_num_threads(1)
if {disabled}:
    heap.disable()
sae = AbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(d_in=512, d_sae=20480, k=4))
step, x = trainer_step(sae, "cpu", 16), torch.randn(16, 512)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step(x)
before = faults()
for _ in range(3):
    step(x)
print((faults() - before) // 3, heap.is_kept())
"""


@pytest.mark.skipif(heap._glibc() is None, reason="memory is kept with glibc alone")
def test_a_step_pages_nothing_in_again() -> None:
    """Two gradients of 40 MiB are 20,480 pages."""
    found = {}
    for disabled in (False, True):
        code = STEPS.format(disabled=disabled)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        faults, kept = done.stdout.split()
        assert kept == str(not disabled)
        found[disabled] = int(faults)
    assert found[True] > 20_000
    assert found[False] < 2_000
