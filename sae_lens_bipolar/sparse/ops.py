"""Encode and decode with only the active latents: the `[batch, d_sae]` matrix is never held whole.

Of the products of a dense training step only the encoder's forward product remains. It is computed
tile by tile, each tile is searched for its active latents and dropped, and everything after it,
gradients included, touches active pairs only. A pair is one latent active for one sample; `n_pairs`
is `batch * k` for top-k. Every function names its dense equivalent.

Plain torch operations, on CPU and CUDA, in float32 or float64, or Triton kernels where the
projection says so (`Projection.reading`). Under autocast the encoder's product is taken in
autocast's precision, as SAELens's is; sums over pairs stay in the parameters' own, and kernels read
rows in autocast's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import Projection, Tile, tiles_of, with_gradient
from sae_lens_bipolar.sparse.selection import Ranking, beyond, top_k


def encode_top_k(
    projection: Projection,
    k: int,
    ranking: Ranking = "magnitude",
    rank_scale: torch.Tensor | None = None,
) -> tuple[Support, torch.Tensor]:
    """The k latents of each sample with the largest `|u|` (or `u`), and their signed `u`.

    Dense equivalent: `u = projection.dense()`; `i = (u.abs() * rank_scale).topk(k).indices`;
    `u.gather(1, i)`. Which of two equal candidates is kept is not defined.

    Args:
        projection: `u`, `[batch, d_sae]`.
        k: latents per sample, `1 <= k <= d_sae`.
        ranking: "magnitude" keeps the largest `|u|`, "value" the largest `u`.
        rank_scale: `[d_sae]`, positive; ranks `u * rank_scale` instead. It gets no gradient.

    Returns:
        The support (`batch * k` pairs) and `u` at its pairs, differentiable with respect to the
        projection's tensors.
    """
    if not 1 <= k <= projection.d_sae:
        raise ConfigError(f"k is {k}; it must lie between 1 and d_sae={projection.d_sae}")
    [(latents, u)] = search(projection, [(None, k)], ranking, rank_scale)
    offsets = torch.arange(projection.x.shape[0] + 1, device=projection.x.device) * k
    support = Support(latents, offsets, projection.d_sae, projection.reading)
    return support, with_gradient(u, support, projection)


def encode_top_k_twice(
    projection: Projection,
    k: int,
    among: torch.Tensor,
    k_among: int,
    ranking: Ranking = "magnitude",
    rank_scale: torch.Tensor | None = None,
) -> tuple[Support, torch.Tensor]:
    """The pairs of `encode_top_k`, then the same among some latents only, from one product.

    Dense equivalent: `u = projection.dense()`; samples `[:batch]` are those of
    `encode_top_k`, samples `[batch:]` are `among[u[:, among].abs().topk(k_among).indices]`.

    Args:
        projection: `u`, `[batch, d_sae]`.
        k: latents per sample, `1 <= k <= d_sae`.
        among: `[n]`, indices of latents, ascending.
        k_among: latents per sample of those, `1 <= k_among <= n`.
        ranking: "magnitude" keeps the largest `|u|`, "value" the largest `u`.
        rank_scale: `[d_sae]`, positive; ranks `u * rank_scale` instead. It gets no gradient.

    Returns:
        The support, of `2 * batch` samples, and `u` at its pairs, differentiable with respect to
        the projection's tensors.
    """
    found = search(projection, [(None, k), (among, k_among)], ranking, rank_scale)
    (latents, u), (latents_among, u_among) = found
    batch = projection.x.shape[0]
    samples = torch.arange(batch + 1, device=u.device)
    offsets = torch.cat([samples[:-1] * k, batch * k + samples * k_among])
    latents = torch.cat([latents, latents_among])
    support = Support(latents, offsets, projection.d_sae, projection.reading)
    return support, with_gradient(torch.cat([u, u_among]), support, projection.twice())


def search(
    projection: Projection,
    searches: list[tuple[torch.Tensor | None, int]],
    ranking: Ranking,
    rank_scale: torch.Tensor | None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each (latents to search, or None for all, and k): the chosen latents and their `u`."""
    scale = None if rank_scale is None else rank_scale.detach()
    chosen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in searches]
    for tiles in tiles_of(projection, scale):
        found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in searches]
        for tile in tiles:
            largest = _search_of(tile, projection, ranking)
            first, n = tile.first, tile.product.shape[1]
            for parts, (among, k) in zip(found, searches, strict=True):
                if among is None:
                    u_top, i = largest(None, min(k, n))
                    parts.append((u_top, i + first if first else i))
                    continue
                inside = among
                if n < projection.d_sae:
                    inside = among[(among >= first) & (among < first + n)]
                if len(inside):
                    u_top, i = largest(inside - first, min(k, len(inside)))
                    parts.append((u_top, inside[i]))
        for all_chosen, parts, (_, k) in zip(chosen, found, searches, strict=True):
            u_top, latents = (_joined(part, dim=1) for part in zip(*parts, strict=True))
            if len(parts) > 1:
                u_top, best = top_k(u_top, k, ranking)
                latents = latents.gather(1, best)
            all_chosen.append((latents.flatten(), u_top.flatten()))
    results = []
    for parts in chosen:
        latents, u = (_joined(part) for part in zip(*parts, strict=True))
        results.append((latents, u if scale is None else u / scale[latents]))
    return results


def _search_of(
    tile: Tile, projection: Projection, ranking: Ranking
) -> Callable[[torch.Tensor | None, int], tuple[torch.Tensor, torch.Tensor]]:
    """A search of a tile: of some of its columns (None: all), and k, values and columns found."""
    by_value = ranking == "value"
    if projection.reading is not None:
        from sae_lens_bipolar.sparse.triton import search as kernels

        def by_kernel(among: torch.Tensor | None, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            u, bias, scale = tile[1:] if among is None else tile.columns(among)[1:]
            if kernels.group_of(u.shape[1], k) is not None:
                return kernels.top_k(u, k, by_value, bias, scale)
            return top_k(Tile(0, u.clone(), bias, scale).finished(torch.float32), k, ranking)

        return by_kernel
    u = tile.finished(projection.W_enc.dtype)

    def by_torch(among: torch.Tensor | None, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return top_k(u if among is None else u.index_select(1, among), k, ranking)

    return by_torch


def encode_threshold(
    projection: Projection, upper: torch.Tensor, lower: torch.Tensor | None = None
) -> tuple[Support, torch.Tensor]:
    """The latents with `u > upper` or `u < -lower`, as many as there are, and their `u`.

    Dense equivalent: `u = projection.dense()`; `u[(u > upper) | (u < -lower)]`.

    Args:
        projection: `u`, `[batch, d_sae]`.
        upper: `[d_sae]`, theta_plus.
        lower: `[d_sae]`, theta_minus; None for a one-sided gate.

    Returns:
        The support and `u` at its pairs, differentiable with respect to the projection's tensors
        (the thresholds get no gradient from the choice).
    """
    upper = upper.detach()
    lower = None if lower is None else lower.detach()
    by_kernel = projection.reading is not None
    counts, latents, values = [], [], []
    for tiles in tiles_of(projection):
        found = []
        n_rows = 0
        for tile in tiles:
            n_rows, n_columns = tile.product.shape
            part = slice(tile.first, tile.first + n_columns)
            below = None if lower is None else lower[part]
            if by_kernel:
                from sae_lens_bipolar.sparse.triton import search as kernels

                found.append(kernels.beyond(tile.product, upper[part], below, tile.bias))
                continue
            u = tile.finished(projection.W_enc.dtype)
            rows, hits, at_hits = beyond(u, upper[part], below)
            found.append((rows, hits + tile.first, at_hits))
        rows, hits, u = (_joined(parts) for parts in zip(*found, strict=True))
        if len(found) > 1:
            order = rows.sort(stable=True).indices
            rows, hits, u = rows[order], hits[order], u[order]
        if by_kernel:  # `bincount` waits for the device
            counts.append(rows.new_zeros(n_rows).index_add_(0, rows, torch.ones_like(rows)))
        else:
            counts.append(torch.bincount(rows, minlength=n_rows))
        latents.append(hits)
        values.append(u)
    offsets = F.pad(_joined(counts).cumsum(0), (1, 0))
    support = Support(_joined(latents), offsets, projection.d_sae, projection.reading)
    return support, with_gradient(_joined(values), support, projection)


def _joined(parts: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """The parts one after another; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def decode(support: Support, values: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
    """`[batch, d_in]` sums of `W_dec` rows weighted by `values`, differentiable in both.

    Dense equivalent: `support.to_dense(values) @ W_dec`.

    Args:
        support: the active pairs.
        values: `[n_pairs]`.
        W_dec: `[d_sae, d_in]`.
    """
    with torch.autocast(values.device.type, enabled=False):
        return _Decode.apply(values, W_dec, support)  # type: ignore[no-any-return]


def row_norms(W_dec: torch.Tensor) -> torch.Tensor:
    """`|W_dec_i|`, `[d_sae]`, for `W_dec` of shape `[d_sae, d_in]`, with its gradient.

    Dense equivalent: `W_dec.norm(dim=1)`, whose gradient takes three passes over `W_dec`, not one.
    """
    return _RowNorms.apply(W_dec)  # type: ignore[no-any-return]


class _RowNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W_dec: torch.Tensor) -> torch.Tensor:
        norms = W_dec.norm(dim=1)
        ctx.save_for_backward(W_dec, norms)
        return norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> torch.Tensor:  # type: ignore[override]
        (g,) = grad_outputs
        W_dec, norms = ctx.saved_tensors
        return W_dec * torch.where(norms > 0, g / norms, 0.0).unsqueeze(1)


class _Decode(torch.autograd.Function):
    """`D @ W_dec` and its gradient with respect to the pairs' values and `W_dec`."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, W_dec: torch.Tensor, support: Support
    ) -> torch.Tensor:
        ctx.support = support
        read = support.read(W_dec.detach())  # once for both passes
        ctx.save_for_backward(values, read)
        return support.times(values.detach(), read)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[torch.Tensor | None, ...]:
        (g,) = grad_outputs
        values, W_dec = ctx.saved_tensors
        support: Support = ctx.support
        g = support.read(g.contiguous().to(values.dtype))
        with torch.autocast(g.device.type, enabled=False):
            dvalues = support.dots(g, W_dec) if ctx.needs_input_grad[0] else None
            dW = support.transpose_times(values, g) if ctx.needs_input_grad[1] else None
        return dvalues, dW, None
