"""What is read from a hook and written back, entry by entry."""

from typing import Any

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_bipolar.evaluation.placement import Placement, placement

FLAT = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
HEADS = torch.arange(2 * 5 * 4 * 3.0).reshape(2, 5, 4, 3)


def a_place(**facts: Any) -> Placement:
    known = {"hook_name": "x", "head": None, "positions": (None,), "flattens": True}
    return Placement(**{**known, **facts})


@pytest.mark.parametrize("head", [None, 0, 2])
@pytest.mark.parametrize("flattens", [True, False])
def test_what_the_sae_is_given(head: int | None, flattens: bool) -> None:
    place = a_place(head=head, flattens=flattens)
    assert place.read(FLAT) is FLAT, "a hook without heads has none to choose"
    expected = HEADS.flatten(2) if flattens else HEADS
    assert torch.equal(place.read(HEADS), expected if head is None else HEADS[:, :, head])


@pytest.mark.parametrize("positions", [(None,), (1, 4), (0, 5, 2), (-2, None)])
@pytest.mark.parametrize("head", [None, 2])
@pytest.mark.parametrize("whole", [FLAT, HEADS], ids=["flat", "heads"])
def test_only_what_was_read_is_replaced(
    whole: torch.Tensor, head: int | None, positions: tuple[int | None, ...]
) -> None:
    place = a_place(head=head, positions=positions)
    before = whole.clone()
    value = -1.0 - place.read(whole).double()
    found = place.write(whole, value)
    expected = whole.clone()
    here = slice(*positions)
    if whole.ndim == 4 and head is not None:
        expected[:, here, head] = -1.0 - whole[:, here, head]
    else:
        expected[:, here] = -1.0 - whole[:, here]
    assert torch.equal(found, expected)
    assert found.dtype == whole.dtype
    assert torch.equal(whole, before)
    covered = torch.zeros(5, dtype=torch.bool)
    covered[here] = True
    assert torch.equal(place.covers(whole), covered)


def test_metadata_without_positions_or_with_some() -> None:
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=8, d_sae=16, k=2))
    sae.cfg.metadata.hook_name = "blocks.0.hook_mlp_out"
    for given, positions in ((None, (None,)), ((), (None,)), ([2, -3], (2, -3))):
        sae.cfg.metadata.seqpos_slice = given
        assert placement(sae) == Placement("blocks.0.hook_mlp_out", None, positions, True)
    sae.cfg.reshape_activations = "hook_z"
    sae.cfg.metadata.hook_head_index = 0
    assert placement(sae) == Placement("blocks.0.hook_mlp_out", 0, (2, -3), False)
