"""Every sparse function equals the dense equivalent its docstring names, gradients included."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from sae_lens_bipolar import sparse
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.sparse import projection as projection_module
from sae_lens_bipolar.sparse.ops import (
    decode,
    encode_threshold,
    encode_top_k,
    encode_top_k_twice,
    row_norms,
)
from sae_lens_bipolar.sparse.pairs import Support, _strips
from sae_lens_bipolar.sparse.projection import Projection, tiles_of
from sae_lens_bipolar.sparse.selection import Ranking

BATCH, D_IN, D_SAE = 21, 6, 200  # neither is a multiple of the tiles below


@pytest.fixture(params=["one tile", "many tiles"], autouse=True)
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        monkeypatch.setattr(projection_module, "_TILE", {"cpu": (8, 64)})


def leaf(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return values.requires_grad_()


def projection(with_bias: bool = True) -> Projection:
    b_enc = leaf(D_SAE, seed=3) if with_bias else None
    return Projection(leaf(BATCH, D_IN, seed=1), leaf(D_IN, D_SAE, seed=2), b_enc)


def gradients(loss: torch.Tensor, *leaves: torch.Tensor | None) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [t for t in leaves if t is not None]))


def dense_top_k(
    u: torch.Tensor, k: int, ranking: Ranking, scale: torch.Tensor | None
) -> torch.Tensor:
    ranked = u.abs() if ranking == "magnitude" else u
    kept = (ranked if scale is None else ranked * scale).topk(k).indices
    return torch.zeros_like(u).scatter(1, kept, u.gather(1, kept))


@pytest.mark.parametrize("k", [1, 3, 150, D_SAE])
@pytest.mark.parametrize("ranking", ["magnitude", "value"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_scale", [True, False])
def test_encode_top_k(k: int, ranking: Ranking, with_bias: bool, with_scale: bool) -> None:
    p = projection(with_bias)
    scale = leaf(D_SAE, seed=4).detach().abs() + 0.1 if with_scale else None
    support, values = encode_top_k(p, k, ranking, scale)
    expected = dense_top_k(p.dense(), k, ranking, scale)
    assert values.numel() == BATCH * k
    assert_close(support.to_dense(values), expected)
    weights = torch.randn(BATCH, D_SAE, dtype=torch.float64)
    ours = gradients((support.to_dense(values) * weights).sum(), p.x, p.W_enc, p.b_enc)
    theirs = gradients((expected * weights).sum(), p.x, p.W_enc, p.b_enc)
    for actual, wanted in zip(ours, theirs, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize("among", [[0], list(range(60, 70)), list(range(1, D_SAE, 2))])
@pytest.mark.parametrize("k_among", [1, 7, 100])
@pytest.mark.parametrize("ranking", ["magnitude", "value"])
@pytest.mark.parametrize("with_scale", [True, False])
def test_encode_top_k_twice(
    among: list[int], k_among: int, ranking: Ranking, with_scale: bool
) -> None:
    p, latents = projection(), torch.tensor(among)
    k_among = min(k_among, len(among))
    scale = leaf(D_SAE, seed=4).detach().abs() + 0.1 if with_scale else None
    support, values = encode_top_k_twice(p, 3, latents, k_among, ranking, scale)
    u = p.dense()
    second = torch.zeros_like(u).index_copy(
        1,
        latents,
        dense_top_k(u[:, latents], k_among, ranking, None if scale is None else scale[latents]),
    )
    expected = torch.cat([dense_top_k(u, 3, ranking, scale), second])
    assert values.numel() == BATCH * (3 + k_among)
    assert_close(support.to_dense(values), expected)
    weights = torch.randn(2 * BATCH, D_SAE, dtype=torch.float64)
    ours = gradients((support.to_dense(values) * weights).sum(), p.x, p.W_enc, p.b_enc)
    theirs = gradients((expected * weights).sum(), p.x, p.W_enc, p.b_enc)
    for actual, wanted in zip(ours, theirs, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("level", [-5.0, 0.5, 4.0, 100.0])  # all, many, few and no latents
def test_encode_threshold(two_sided: bool, level: float) -> None:
    p = projection()
    upper = level + torch.rand(D_SAE, dtype=torch.float64)
    lower = level + torch.rand(D_SAE, dtype=torch.float64) if two_sided else None
    support, values = encode_threshold(p, upper, lower)
    u = p.dense()
    gate = (u > upper) if lower is None else (u > upper) | (u < -lower)
    assert values.numel() == int(gate.sum())
    assert torch.equal(support.samples, gate.nonzero()[:, 0])
    assert_close(support.to_dense(values), u * gate)
    ours = gradients((support.to_dense(values) ** 3).sum(), p.x, p.W_enc, p.b_enc)
    theirs = gradients(((u * gate) ** 3).sum(), p.x, p.W_enc, p.b_enc)
    for actual, wanted in zip(ours, theirs, strict=True):
        assert_close(actual, wanted)


def test_gradient_of_a_shift_is_that_of_a_subtracted_bias() -> None:
    x, W_enc, b_dec = (
        leaf(BATCH, D_IN, seed=1).detach(),
        leaf(D_IN, D_SAE, seed=2),
        leaf(D_IN, seed=3),
    )
    shifted = Projection((x - b_dec).detach(), W_enc, None, b_dec)
    plain = Projection(x - b_dec, W_enc)
    support, values = encode_top_k(shifted, 5)
    expected = gradients((plain.dense() * support.to_dense(values.detach())).sum(), b_dec)[0]
    assert_close(gradients((values * values.detach()).sum(), b_dec)[0], expected)
    assert_close(
        gradients((shifted.dense() * support.to_dense(values.detach())).sum(), b_dec)[0], expected
    )


def test_gradient_of_a_shift_is_taken_in_float32_under_autocast_too() -> None:
    x, W_enc, b_dec = (leaf(*size, seed=1).float().detach() for size in ((9, 5), (5, 12), (5,)))
    b_dec.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        support, values = encode_top_k(Projection(x - b_dec.detach(), W_enc, None, b_dec), 3)
        (gradient,) = torch.autograd.grad(values.sum(), b_dec)
    ones = support.to_dense(torch.ones_like(values)).float()
    assert_close(gradient, -(ones @ W_enc.t()).sum(0), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(
        encode_top_k(Projection(x, W_enc, None, b_dec), 12)[1].sum(), b_dec
    )
    assert_close(gradient, -9 * W_enc.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "encode",
    [
        lambda p: encode_top_k(p, 7),
        lambda p: encode_threshold(p, torch.full((D_SAE,), 3.0), torch.full((D_SAE,), 2.0)),
    ],
)
def test_decode(encode: Callable[[Projection], tuple[Support, torch.Tensor]]) -> None:
    support, values = encode(projection())
    values = values.detach().requires_grad_()
    W_dec = leaf(D_SAE, D_IN, seed=5)
    ours, theirs = decode(support, values, W_dec), support.to_dense(values) @ W_dec
    assert_close(ours, theirs)
    for actual, wanted in zip(
        gradients(ours.pow(3).sum(), values, W_dec),
        gradients(theirs.pow(3).sum(), values, W_dec),
        strict=True,
    ):
        assert_close(actual, wanted)


def test_row_norms() -> None:
    W_dec = leaf(D_SAE, D_IN, seed=5)
    with torch.no_grad():
        W_dec[3] = 0
    weights = torch.randn(D_SAE, dtype=torch.float64)
    ours, theirs = row_norms(W_dec), W_dec.norm(dim=1)
    assert torch.equal(ours, theirs)
    (actual,) = gradients((ours * weights).sum(), W_dec)
    (wanted,) = gradients((theirs * weights).sum(), W_dec)
    assert_close(actual, wanted)
    assert not actual[3].any()


def test_gradcheck() -> None:
    x, W_enc, b_enc, W_dec = (
        leaf(5, 4, seed=1),
        leaf(4, 12, seed=2),
        leaf(12, seed=3),
        leaf(12, 4, seed=4),
    )

    def step(*tensors: torch.Tensor) -> torch.Tensor:
        x, W_enc, b_enc, W_dec = tensors
        support, values = encode_top_k(Projection(x, W_enc, b_enc), 3)
        return decode(support, values, W_dec)

    assert torch.autograd.gradcheck(step, (x, W_enc, b_enc, W_dec))


def test_support_by_hand() -> None:
    support = Support(torch.tensor([2, 0, 1]), torch.tensor([0, 2, 2, 3]), 4)
    values = torch.tensor([5.0, -1.0, 3.0])
    dense = torch.tensor([[-1.0, 0, 5, 0], [0, 0, 0, 0], [0, 3, 0, 0]])
    rows = torch.arange(8.0).view(4, 2)
    left = torch.arange(6.0).view(3, 2)
    assert support.samples.tolist() == [0, 0, 2]
    assert torch.equal(support.to_dense(values), dense)
    assert torch.equal(support.sum_per_latent(values), dense.sum(0))
    assert torch.equal(support.sum_per_sample(values), dense.sum(1))
    assert torch.equal(support.times(values, rows), dense @ rows)
    assert torch.equal(support.transpose_times(values, left), dense.T @ left)
    assert torch.equal(support.left_times(values, left), left.T @ dense)
    assert torch.equal(support.dots(left, rows), (left @ rows.T)[[0, 0, 2], [2, 0, 1]])


def test_support_without_pairs() -> None:
    support = Support(torch.empty(0, dtype=torch.long), torch.zeros(4, dtype=torch.long), 5)
    none, rows, left = torch.empty(0), torch.ones(5, 2), torch.ones(3, 2)
    assert torch.equal(support.times(none, rows), torch.zeros(3, 2))
    assert torch.equal(support.transpose_times(none, left), torch.zeros(5, 2))
    assert torch.equal(support.left_times(none, left), torch.zeros(2, 5))
    assert support.dots(left, rows).shape == (0,)


def test_dots_the_way_other_devices_take() -> None:
    support, _ = encode_top_k(projection(), 7)
    left, right = leaf(BATCH, D_IN, seed=6).detach(), leaf(D_SAE, D_IN, seed=7).detach()
    assert_close(support._dots_by_embedding_bag(left, right), support.dots(left, right))


def test_transposed_sums_the_way_other_devices_take(monkeypatch: pytest.MonkeyPatch) -> None:
    support, _ = encode_top_k(projection(), 7)
    values, rows = torch.randn(BATCH * 7), torch.randn(BATCH, D_IN)
    expected = support.to_dense(values).t() @ rows
    elsewhere: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), here=values)
    sums = support.transpose_times
    monkeypatch.setattr(support, "transpose_times", lambda v, r: sums(v.here, r))
    found = support.left_times(elsewhere, rows)
    assert_close(found, expected.t())
    assert found.is_contiguous()


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_transposed_sums_keep_their_precision(precision: str) -> None:
    """Under "medium" torch multiplies on CPU in bfloat16."""
    support, values = encode_top_k(projection(), 7)
    left = torch.randn(BATCH, 100)
    expected = support.transpose_times(values.detach().float(), left).t()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = support.left_times(values.detach().float(), left)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("columns", [512, 500])
def test_rows_beyond_the_cache_are_read_in_strips(columns: int) -> None:
    batch, d_sae, k = 1500, 1400, 30
    latents = torch.stack([torch.randperm(d_sae)[:k] for _ in range(batch)]).flatten()
    support = Support(latents, torch.arange(batch + 1) * k, d_sae)
    values = torch.randn(batch * k)
    x, W_dec = torch.randn(batch, columns), torch.randn(d_sae, columns)
    assert len(_strips(latents, support.offsets, W_dec)) == 8
    assert not _strips(latents[:10_000], support.offsets, W_dec)  # rows are read too seldom
    D = support.to_dense(values).double()
    close = partial(assert_close, rtol=1e-5, atol=1e-4)
    close(support.times(values, W_dec).double(), D @ W_dec.double())
    close(support.transpose_times(values, x).double(), D.T @ x.double())
    close(support.left_times(values, x).double(), x.double().T @ D)
    products = (x.double() @ W_dec.double().T)[support.samples, latents]
    close(support.dots(x, W_dec).double(), products)


@pytest.mark.parametrize("n_pairs", [4096, 4097, 20_000, 32_767, 32_768])
@pytest.mark.parametrize("d_sae", [1 << 15, 1 << 16])
def test_pairs_in_order_of_their_latent(n_pairs: int, d_sae: int) -> None:
    latents = torch.randint(d_sae - 3, d_sae, (n_pairs,))  # up to the largest a short key holds
    support = Support(latents, torch.tensor([0, n_pairs]), d_sae)
    assert torch.equal(support._by_latent[0], latents.sort(stable=True).indices)


def test_columns_of_a_projection() -> None:
    p, latents = projection(), torch.tensor([150, 3, 77])
    assert_close(p.columns(latents).dense(), p.dense()[:, latents])


def test_autocast_takes_the_product_in_bfloat16_and_nothing_else() -> None:
    x, W_enc, b_enc = (
        leaf(BATCH, D_IN, seed=1, dtype=torch.float32),
        leaf(D_IN, D_SAE, seed=2, dtype=torch.float32),
        leaf(D_SAE, seed=3, dtype=torch.float32),
    )
    p = Projection(x, W_enc, b_enc)
    W_dec = leaf(D_SAE, D_IN, seed=5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        support, values = encode_top_k(p, 9)
        u = p.dense()
        recons = decode(support, values, W_dec)
    assert u.dtype == values.dtype == recons.dtype == torch.float32
    # The dense product has the same bfloat16 rounding: the same support, the same values.
    assert torch.equal(support.to_dense(values), dense_top_k(u, 9, "magnitude", None))
    assert_close(recons, support.to_dense(values) @ W_dec)


@pytest.mark.parametrize("k", [0, D_SAE + 1, -3])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}.*d_sae={D_SAE}"):
        encode_top_k(projection(), k)


def test_mode() -> None:
    cpu, float32 = torch.device("cpu"), torch.float32
    crossover = sparse.CROSSOVER["cpu"]
    assert sparse.prefer_sparse(crossover, cpu, float32)
    assert not sparse.prefer_sparse(crossover * 1.01, cpu, float32)
    assert not sparse.prefer_sparse(0.001, cpu, torch.bfloat16)
    with sparse.mode("dense"):
        assert not sparse.prefer_sparse(0.001, cpu, float32)
        with sparse.mode("sparse"):
            assert sparse.prefer_sparse(1.0, cpu, float32)
        assert not sparse.prefer_sparse(0.001, cpu, float32)
    assert sparse.prefer_sparse(0.001, cpu, float32)
    with pytest.raises(ConfigError, match="did you mean 'sparse'"):
        sparse.set_mode("sprase")  # type: ignore[arg-type]


@pytest.mark.parametrize("d_sae", [1 << 15, (1 << 15) + 1])
@pytest.mark.parametrize("n_pairs", [3000, 6000, 40000])  # keys as they are, filled up, many
def test_latents_up_to_the_last_are_put_in_order(d_sae: int, n_pairs: int) -> None:
    """Keys of 16 bits as long as they hold every latent; the largest is also what fills up."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(d_sae, (n_pairs,), generator=generator)
    latents[::7] = d_sae - 1
    latents[1::11] = 0
    support = Support(latents, torch.arange(0, n_pairs + 1, n_pairs // 100), d_sae)
    values = torch.randn(n_pairs, generator=generator, dtype=torch.float64)
    left = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    right = torch.randn(d_sae, 3, generator=generator, dtype=torch.float64)
    at_pairs = left[support.samples]
    expected = left.new_zeros(d_sae, 3).index_add(0, latents, values[:, None] * at_pairs)
    assert_close(support.transpose_times(values, left), expected)
    assert_close(support.left_times(values, left), expected.T)
    assert_close(support.dots(left, right), (at_pairs * right[latents]).sum(-1))


@pytest.mark.parametrize(
    ("batch", "d_sae"), [(1, 5), (600, 64), (3, 14336), (2, 14337), (2, 40000)]
)
def test_tiles_cover_the_projection_and_none_is_larger_than_it_may_be(
    batch: int, d_sae: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(s, generator=generator) for s in ((batch, 3), (3, d_sae)))
    b, scale = torch.randn(d_sae, generator=generator), torch.rand(d_sae, generator=generator)
    for bias, by in ((None, None), (b, None), (None, scale), (b, scale)):
        projection = Projection(x, W, bias)
        rows = []
        for tiles in tiles_of(projection, by):
            parts, next_first = [], 0
            for tile in tiles:
                u = tile.finished(torch.float32)
                assert tile.first == next_first
                assert tile.first % 64 == 0
                assert u.shape[0] <= 512
                assert u.shape[1] <= 14336
                parts.append(u.clone())
                next_first += u.shape[1]
            rows.append(torch.cat(parts, dim=1))
        expected = projection.dense() if by is None else projection.dense() * by
        torch.testing.assert_close(torch.cat(rows), expected)
