"""Selection equals torch's own, ties and odd widths included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_bipolar.selection import Ranking, top_k, where_true


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    share=st.floats(0.001, 1.0),
    ranking=st.sampled_from(["magnitude", "value"]),
    coarse=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_top_k_finds_the_k_largest(
    rows: int, columns: int, share: float, ranking: Ranking, coarse: bool, seed: int
) -> None:
    u = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if coarse:  # many ties
        u = u.mul(2).round()
    k = max(1, int(share * columns))
    values, indices = top_k(u, k, ranking)
    ranked = u.abs() if ranking == "magnitude" else u
    expected = ranked.topk(k).values
    assert torch.equal(ranked.gather(1, indices).sort(descending=True).values, expected)
    assert torch.equal(values, u.gather(1, indices))
    assert all(len(set(row.tolist())) == k for row in indices)


@pytest.mark.parametrize(
    ("columns", "k"),
    [
        (8192, 51),
        (12288, 76),
        (13696, 256),
        (4096, 1),
        (4099, 1),
        (8191, 51),
        (8197, 9),
        (4134, 256),
    ],
)
@pytest.mark.parametrize("ranking", ["magnitude", "value"])
def test_top_k_through_several_levels_of_groups(columns: int, k: int, ranking: Ranking) -> None:
    u = torch.randn(9, columns, dtype=torch.float64)
    values, indices = top_k(u, k, ranking)
    expected = (u.abs() if ranking == "magnitude" else u).topk(k).indices
    assert torch.equal(indices.sort().values, expected.sort().values)
    assert torch.equal(values, u.gather(1, indices))


def test_top_k_by_hand() -> None:
    u = torch.tensor([[0.5, -3.0, 2.0, 1.0]])
    assert sorted(top_k(u, 2, "magnitude")[0].flatten().tolist()) == [-3.0, 2.0]
    assert sorted(top_k(u, 2, "value")[0].flatten().tolist()) == [1.0, 2.0]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 70),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**20),
)
def test_where_true_is_nonzero(rows: int, columns: int, density: float, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    for ours, theirs in zip(where_true(mask), mask.nonzero(as_tuple=True), strict=True):
        assert torch.equal(ours, theirs)
