"""Trained on two and three ranks, an SAE is what one process makes of the same batches."""

import copy
from functools import cache
from typing import Any

import pytest
import torch

from sae_lens_bipolar import sparse
from tests.architecture_list import ARCHITECTURE_LIST
from tests.runs.distributed import training
from tests.runs.distributed.gloo import on_ranks
from tests.runs.distributed.training import D_IN, D_SAE

# A pre-activation that equals its threshold to rounding falls on either side of it. From 0.4, where
# the list begins, one comes within an ulp in step 31; from here none does, which is checked.
CLEAR = {"bi_jumprelu": {"jumprelu_init_threshold": 0.38}}
CASES = {
    f"{entry} {arithmetic}": (
        entry.config(d_in=D_IN, d_sae=D_SAE, **CLEAR.get(str(entry), {})),
        arithmetic,
    )
    for entry in ARCHITECTURE_LIST
    for arithmetic in ("sparse", "dense")
}
# One of each architecture; all of them, for as long as the losses shall agree, are slow.
FEW = {
    name: case
    for name, case in CASES.items()
    if (name.endswith(" sparse") and " " not in name.removesuffix(" sparse"))
    or "full sparse" in name
}


@cache
def alone(case: str, steps: int) -> dict[str, Any]:
    cfg, arithmetic = copy.deepcopy(CASES[case])
    with sparse.mode(arithmetic):  # type: ignore[arg-type]
        return training.train(training.make_trainer(cfg, steps), steps)


@pytest.fixture(scope="module")
def on_three(tmp_path_factory) -> list[Any]:
    return on_ranks(3, training.train_all, tmp_path_factory.mktemp("three"), FEW, 15)


@pytest.fixture(scope="module", params=[2, 3])
def all_cases(request, tmp_path_factory) -> list[Any]:
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    return on_ranks(request.param, training.train_all, folder, CASES, 50)


@pytest.mark.parametrize("case", FEW)
def test_three_ranks_train_as_one_process(on_three, case) -> None:
    require_equal(on_three, case, 15)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_architecture_ends_fifty_steps_as_in_one_process(all_cases, case) -> None:
    require_equal(all_cases, case, 50)


def require_equal(sharded: list[Any], case: str, steps: int) -> None:
    one = alone(case, steps)
    assert one["margin"] > 2e-6, "the data decide by rounding: choose others"
    if "jumprelu" not in case:  # whose steps do not ask for dead latents
        assert max(one["dead"]) > 0, "AuxK and resets of thresholds are to be seen"
    for rank in sharded:
        found = rank[case]
        assert found["dead"] == one["dead"]
        for step, (here, there) in enumerate(zip(found["losses"], one["losses"], strict=True)):
            assert here == pytest.approx(there, rel=1e-5, abs=1e-5), f"step {step}"
    first = sharded[0][case]
    assert first["weights"].keys() == one["weights"].keys()
    for kind in ("weights", "adam"):
        assert first[kind].keys() == one[kind].keys()
        for name, tensor in one[kind].items():
            torch.testing.assert_close(
                first[kind][name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
    for kind in ("fired", "frequencies"):
        assert torch.equal(first[kind], one[kind])
