"""Each kernel equals the dense equivalent its docstring names: in the interpreter, or on a GPU."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from sae_lens_bipolar.sparse.triton import search
from sae_lens_bipolar.sparse.triton.gradients import (
    _SEGMENT,
    ByLatent,
    sums_by_latent,
    transposed_sums_by_latent,
)
from sae_lens_bipolar.sparse.triton.search import beyond, group_of, top_k
from sae_lens_bipolar.sparse.triton.sums import dots, weighted_sums

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def random(*shape: int, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def rows_of(case: str, device: str) -> torch.Tensor:
    """Rows to search: odd widths, ties, zeros, and values that are no ordinary numbers."""
    n = 100 if device == "cpu" else 12_289
    u = random(3, n, device=device)
    if case == "ties":
        u = u.mul(1.5).round()
    elif case == "zeros":
        u = torch.zeros_like(u)
        u[1] = -0.0
    elif case == "one row":
        u = u[:1]
    elif case == "infinities and tiny":
        u[0, 5], u[1, 7], u[2] = float("inf"), float("-inf"), u[2] * 1e-42
    elif case == "negative":
        u = -u.abs() - 1
    return u.contiguous()


CASES = ["random", "ties", "zeros", "one row", "infinities and tiny", "negative"]


@pytest.fixture(params=[False, True], ids=["whole rows", "groups"])
def in_groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Searches of short rows go by groups of columns too."""
    if request.param:
        monkeypatch.setattr(search, "_PLAIN", 16)
    group_of.cache_clear()
    yield request.param
    group_of.cache_clear()


@on_every_device
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("by_value", [False, True])
def test_top_k(device: str, case: str, by_value: bool, in_groups: bool) -> None:
    u = rows_of(case, device)
    for k in (1, 7, u.shape[1]):
        if in_groups and k < u.shape[1]:
            assert group_of(u.shape[1], k)
        values, indices = top_k(u, k, by_value)
        assert (indices.diff(dim=1) > 0).all()  # distinct, in order
        assert torch.equal(values, u.gather(1, indices))
        ranked = u if by_value else u.abs()
        chosen = ranked.gather(1, indices).sort(dim=1, descending=True).values
        assert torch.equal(chosen, ranked.topk(k).values)
        if case == "random":  # no ties: the sets themselves are determined
            assert torch.equal(indices, ranked.topk(k).indices.sort(dim=1).values)


@on_every_device
def test_top_k_keeps_the_first_of_equal_candidates(device: str, in_groups: bool) -> None:
    u = torch.tensor([[1.0, -2.0, 2.0, 0.0, -2.0]], device=device)
    assert top_k(u, 2, False)[1].tolist() == [[1, 2]]
    assert top_k(torch.zeros_like(u), 3, True)[1].tolist() == [[0, 1, 2]]
    u = torch.tensor([[1.0, 2.0, 0.0, 2.0, 3.0, -2.0, 2.0, 2.0] * 4], device=device)
    for k in range(1, 9):
        by_rank = sorted(range(32), key=lambda i: (-abs(u[0, i].item()), i))[:k]
        assert top_k(u, k, False)[1].tolist() == [sorted(by_rank)]


def test_groups_are_used_where_few_are_wanted() -> None:
    group_of.cache_clear()
    assert group_of(36_864, 230) == 16
    assert group_of(131_072, 32)
    assert group_of(1_048_576, 64)
    assert group_of(1000, 32) == 0  # short rows
    assert group_of(16_000, 9000) == 0  # nearly all would be chosen
    assert group_of(65_536, 30_000) is None  # torch searches


@on_every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["bias", "scale", "both"])
def test_bias_and_scale_are_applied(
    device: str, dtype: torch.dtype, part: str, in_groups: bool
) -> None:
    u = rows_of("random", device).to(dtype)
    n = u.shape[1]
    bias = random(n, seed=2, device=device) if part != "scale" else None
    scale = random(n, seed=3, device=device).abs() + 0.5 if part != "bias" else None
    entries = u.double()
    entries = entries if scale is None else entries * scale.double()
    entries = entries if bias is None else entries + bias.double()
    for by_value in (False, True):
        values, indices = top_k(u, 9, by_value, bias, scale)
        ranked = entries if by_value else entries.abs()
        assert torch.equal(indices, ranked.topk(9).indices.sort(dim=1).values)
        assert relative_error(values, entries.gather(1, indices)) <= 1e-6
    if scale is None:
        upper = torch.full((n,), 1.2345, device=device)
        rows, columns, values = beyond(u, upper, upper, bias)
        expected = (entries.abs() > 1.2345).nonzero(as_tuple=True)
        assert torch.equal(rows, expected[0])
        assert torch.equal(columns, expected[1])
        assert relative_error(values, entries[expected]) <= 1e-6


@on_every_device
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("two_sided", [False, True])
def test_beyond(device: str, case: str, two_sided: bool) -> None:
    u = rows_of(case, device)
    upper = random(u.shape[1], seed=1, device=device).abs()
    upper[::3] = 1.0  # thresholds that ties lie on exactly
    lower = upper.flip(0) if two_sided else None
    for scale in (1.0, 0.0, 1e9):
        mask = u > upper * scale
        if lower is not None:
            mask |= u < -lower * scale
        rows, columns, values = beyond(u, upper * scale, None if lower is None else lower * scale)
        expected = mask.nonzero(as_tuple=True)
        assert torch.equal(rows, expected[0])
        assert torch.equal(columns, expected[1])
        assert torch.equal(values, u[expected])


class Pairs:
    """Random pairs of a batch, with the dense matrices that the sums over them stand for."""

    def __init__(self, mask: torch.Tensor, d_in: int, device: str):
        batch, self.d_sae = mask.shape
        mask = mask.to(device)
        samples, self.latents = mask.nonzero(as_tuple=True)
        self.offsets = F.pad(mask.sum(1).cumsum(0), (1, 0))
        order = self.latents.sort(stable=True).indices
        begins = F.pad(mask.sum(0).cumsum(0), (1, 0))
        self.by_latent = ByLatent.of(order, samples[order], begins)
        self.at = (samples, self.latents)
        self.values, self.du, self.slope = (
            random(len(order), seed=seed, device=device) for seed in range(3)
        )
        self.W_dec = random(self.d_sae, d_in, seed=4, device=device)
        self.g = random(batch, d_in, seed=5, device=device)
        self.x = random(batch, d_in, seed=6, device=device)

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        matrix = values.new_zeros(len(self.g), self.d_sae, dtype=torch.float64)
        return matrix.index_put(self.at, values.double())


def mask_of(case: str) -> torch.Tensor:
    """Which latents are active for which samples, `[batch, d_sae]`."""
    mask = random(5, 11, seed=9) > 0.7
    if case == "one sample":
        return mask[:1]
    if case == "all dead":
        return torch.zeros_like(mask)
    if case == "all active":
        return torch.ones_like(mask)
    if case == "one pair":
        return F.one_hot(torch.tensor([3]), 11).bool()
    if case == "one latent hot in every sample":
        mask = torch.zeros(2 * _SEGMENT + 3, 3, dtype=torch.bool)
        mask[:, 1] = True
        mask[0, 2] = mask[7, 2] = True
    return mask


MASKS = ["random", "one sample", "all dead", "all active", "one pair"]
MASKS += ["one latent hot in every sample"]
precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)


@on_every_device
@precisions
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("d_in", [1, 6])
def test_weighted_sums(
    device: str, dtype: torch.dtype, tolerance: float, case: str, d_in: int
) -> None:
    p = Pairs(mask_of(case), d_in, device)
    sums = weighted_sums(p.latents, p.offsets, p.values, p.W_dec.to(dtype))
    assert sums.dtype == torch.float32
    assert relative_error(sums, p.dense(p.values) @ p.W_dec.double()) <= tolerance


@on_every_device
@precisions
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("d_in", [1, 6])
def test_dots(device: str, dtype: torch.dtype, tolerance: float, case: str, d_in: int) -> None:
    p = Pairs(mask_of(case), d_in, device)
    found = dots(p.latents, p.offsets, p.g.to(dtype), p.W_dec.to(dtype))
    assert found.dtype == torch.float32
    assert relative_error(found, (p.g.double() @ p.W_dec.double().t())[p.at]) <= tolerance


@on_every_device
@precisions
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("d_in", [1, 6, 70])
def test_sums_by_latent(
    device: str, dtype: torch.dtype, tolerance: float, case: str, d_in: int
) -> None:
    p = Pairs(mask_of(case), d_in, device)
    sums = sums_by_latent(p.by_latent, p.values, p.g.to(dtype))
    assert sums.dtype == torch.float32
    dense = p.dense(p.values)
    assert relative_error(sums, dense.t() @ p.g.double()) <= tolerance
    transposed, totals = transposed_sums_by_latent(p.by_latent, p.values, p.g.to(dtype))
    assert transposed.is_contiguous()
    assert torch.equal(transposed, sums.t())
    assert relative_error(totals, dense.sum(0)) <= 1e-5


@on_every_device
def test_further_segments_of_hot_latents(device: str) -> None:
    """Several hot latents, in several tiles and blocks of latents."""
    mask = torch.zeros(3 * _SEGMENT + 1, 4200, dtype=torch.bool)
    for latent, n in {0: 768, 5: 769, 64: 257, 4095: 256, 4096: 600, 4199: 513}.items():
        mask[:n, latent] = True
    p = Pairs(mask, 3, device)
    assert p.by_latent.segments.diff()[[0, 5, 64, 4095, 4096, 4199]].tolist() == [2, 3, 1, 0, 2, 2]
    expected = p.dense(p.values).t() @ p.g.double()
    assert relative_error(sums_by_latent(p.by_latent, p.values, p.g), expected) <= 1e-5
    transposed, totals = transposed_sums_by_latent(p.by_latent, p.values, p.g)
    assert relative_error(transposed, expected.t()) <= 1e-5
    assert relative_error(totals, p.dense(p.values).sum(0)) <= 1e-5


@on_every_device
def test_hot_latents_add_up_the_same_twice(device: str) -> None:
    p = Pairs(mask_of("one latent hot in every sample"), 6, device)
    assert (p.by_latent.segments.diff() > 0).any()
    once, again = (transposed_sums_by_latent(p.by_latent, p.values, p.g) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
