"""Sequences are shared out over ranks, also where they do not divide; the activations are all."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_lens_bipolar.runs.distributed.language_model import share_language_model
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from tests.runs.distributed.gloo import on_ranks


def activations(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of two hooks, `[sequences, positions, d_in]`."""
    x = tokens[..., None] * torch.tensor([1.0, -2.0, 0.5])
    return {"first": x, "second": x[..., :2] + 1}


def shared(ranks: Ranks, sizes: list[int]) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """For each number of sequences, how many of them this rank ran, and what it was given."""
    ran: list[int] = []

    def alone(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        ran.append(len(tokens))
        return activations(tokens)

    store: Any = SimpleNamespace(device=torch.device("cpu"), get_multi_hook_activations=alone)
    share_language_model(store, ranks)
    found = [store.get_multi_hook_activations(torch.arange(4 * n).view(n, 4)) for n in sizes]
    return list(zip(ran, found, strict=True))


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_runs_its_sequences_and_has_the_activations_of_all(tmp_path, size) -> None:
    sizes = [1, 2, 5, 6]
    for rank, given in enumerate(on_ranks(size, shared, tmp_path, sizes)):
        for n, (ran, found) in zip(sizes, given, strict=True):
            expected = activations(torch.arange(4 * n).view(n, 4))
            assert found.keys() == expected.keys()
            for hook in expected:
                assert torch.equal(found[hook], expected[hook])
            most = -(-n // size)
            own = min(most, max(0, n - rank * most))
            assert ran == (own or 1), "a rank without a sequence runs the first, for the shapes"
