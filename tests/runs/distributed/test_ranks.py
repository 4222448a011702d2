"""What ranks choose, add up and put together, against the whole tensors."""

from typing import Any

import pytest
import torch

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from tests.runs.distributed.gloo import on_ranks

D_SAE = 11  # 4, 4 and 3 latents on three ranks


def exchange(ranks: Ranks) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, D_SAE, generator=generator)
    own = scores[:, ranks.own(D_SAE)]
    found: dict[Any, Any] = {k: ranks.largest(own, k) for k in (1, 3, 7, D_SAE)}
    found["ties"] = ranks.largest(torch.ones_like(own), 6)
    found["whole"] = ranks.gather_uneven(own, 1, D_SAE)
    weight = torch.full((), float(ranks.rank + 1), requires_grad=True)
    shared = torch.tensor(2.0, requires_grad=True)
    x = ranks.whole(weight * ranks.shared(shared) + ranks.on_first(torch.tensor(10.0)))
    (x**2).backward()
    assert weight.grad is not None
    assert shared.grad is not None
    found["sum"], found["gradients"] = x.item(), (weight.grad.item(), shared.grad.item())
    dtensor = ranks.distributed(scores, 1)
    found["norm"] = dtensor.norm().full_tensor().item()  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    return on_ranks(3, exchange, tmp_path_factory.mktemp("exchange"))


def test_the_largest_of_all_ranks_are_chosen_exactly(found) -> None:
    scores = torch.randn(5, D_SAE, generator=torch.Generator().manual_seed(0))
    for k in (1, 3, 7, D_SAE):
        mask = torch.cat([rank[k] for rank in found], 1)
        best = torch.zeros_like(mask).scatter_(1, scores.topk(k).indices, True)
        assert torch.equal(mask, best)


def test_of_equal_scores_exactly_k_are_chosen(found) -> None:
    assert torch.cat([rank["ties"] for rank in found], 1).sum(1).tolist() == [6] * 5


def test_uneven_parts_come_back_together(found) -> None:
    scores = torch.randn(5, D_SAE, generator=torch.Generator().manual_seed(0))
    for rank in found:
        assert torch.equal(rank["whole"], scores)
        assert rank["norm"] == pytest.approx(scores.norm().item())


def test_sums_have_the_gradients_of_one_process(found) -> None:
    # x = (1 + 2 + 3) 2 + 10 = 22, so d x^2 / d weight = 44 * 2 and d x^2 / d shared = 44 * 6
    for rank in found:
        assert rank["sum"] == 22
        assert rank["gradients"] == (88, 264)


def test_a_rank_without_latents_is_refused() -> None:
    class Mesh:
        device_type = "cpu"

    ranks = Ranks(0, 4, Mesh())  # type: ignore[arg-type]
    ranks.require_latents(7)  # 2, 2, 2, 1
    with pytest.raises(ConfigError, match="d_sae=6 is not allowed on 4 ranks"):
        ranks.require_latents(6)
