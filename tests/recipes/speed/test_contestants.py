"""The speed benchmark takes its contestants from the records: every architecture is one."""

import pytest
import torch

from recipes.speed.contestants import SHAPES, Options, activations, comparisons, make_sae, make_step
from tests.architecture_list import ARCHITECTURE_LIST

OPTIONS = Options(l0=16)
NAMES = list(dict.fromkeys(entry.name for entry in ARCHITECTURE_LIST))


@pytest.mark.parametrize("name", NAMES)
def test_contestant(name: str) -> None:
    shape = SHAPES["tiny"]
    output = make_step(f"our {name}", shape, OPTIONS)(activations(shape, OPTIONS))
    assert torch.isfinite(output.loss)
    assert output.feature_acts.shape == (shape.batch, shape.d_sae)


def test_those_with_a_step_of_their_own_are_timed_beside_saelens() -> None:
    timed = dict(reversed(comparisons()))
    assert timed["our abstopk"] == "SAELens abstopk"
    assert timed["our sparse_topk"] == "SAELens topk"
    assert timed["our sign_aware_gated"] == "SAELens gated"
    assert timed["our gated_l0"] == "SAELens gated"
    assert ("our abstopk", "eai-sparsify") in comparisons()


@pytest.mark.parametrize("reference", ["SAELens abstopk", "SAELens topk", "SAELens gated"])
def test_the_counterpart_is_saelens_own_class(reference: str) -> None:
    sae = make_sae(reference, SHAPES["tiny"], OPTIONS)
    assert type(sae).__module__.startswith("sae_lens.")
    assert sae.cfg.architecture() == reference.removeprefix("SAELens ")
