"""Encode and decode with only the active latents: the `[batch, d_sae]` matrix is never held whole.

Of the products of a dense training step only the encoder's forward product remains. It is computed
tile by tile, each tile is searched for its active latents and dropped, and everything after it,
gradients included, touches active pairs only. A pair is one latent active for one sample; `n_pairs`
is `batch * k` for top-k. Every function names its dense equivalent.

Plain torch operations, on CPU and CUDA, in float32 or float64. Under autocast the encoder's product
is taken in autocast's precision, as SAELens's is; sums over pairs stay in the parameters' own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from sae_lens_bipolar.errors import ConfigError, did_you_mean
from sae_lens_bipolar.selection import Ranking, top_k, where_true
from sae_lens_bipolar.support import Support

Mode = Literal["auto", "sparse", "dense"]
_MODES = ("auto", "sparse", "dense")
_mode: ContextVar[str] = ContextVar("sae_lens_bipolar.sparse.mode", default="auto")

# The density (active pairs / (batch * d_sae)) above which dense products are faster. Measured on
# CPU; on CUDA an estimate from memory traffic, where a dense product is far cheaper.
CROSSOVER = {"cpu": 0.15, "cuda": 0.02}
# Samples and latents of one tile of the projection. With fewer samples the encoder's product slows
# down, because the weights are packed anew for every tile; on CPU a tile stays below the 32 MiB
# from which glibc returns memory at once, and each tile would be paged in again.
_TILE = {"cpu": (512, 14336), "cuda": (4096, 16384)}


def set_mode(mode: Mode) -> None:
    """Choose from here on: "sparse", "dense", or "auto" (the default), by density."""
    if mode not in _MODES:
        raise ConfigError(
            f"mode is {mode!r}; allowed: {', '.join(_MODES)}{did_you_mean(str(mode), _MODES)}"
        )
    _mode.set(mode)


@contextmanager
def mode(mode: Mode) -> Iterator[None]:
    """`set_mode(mode)` inside a `with` block; the mode from before comes back at its end."""
    before = _mode.get()
    set_mode(mode)
    try:
        yield
    finally:
        _mode.set(before)


def prefer_sparse(density: float, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether sparse is the faster way at this density, or what `mode` says.

    Args:
        density: active pairs divided by `batch * d_sae`; `k / d_sae` for top-k.
        device: where the parameters are.
        dtype: the parameters' dtype; anything but float32 and float64 is left to dense code.
    """
    if dtype not in (torch.float32, torch.float64) or _mode.get() == "dense":
        return False
    return _mode.get() == "sparse" or density <= CROSSOVER.get(device.type, 0.0)


@dataclass(frozen=True, eq=False)
class Projection:
    """`u = x @ W_enc + b_enc`, not computed yet.

    Dense equivalent: `Projection(...).dense()`.

    Args:
        x: encoder input, `[batch, d_in]`.
        W_enc: `[d_in, d_sae]`.
        b_enc: `[d_sae]`, or None for none.
        shift: `[d_in]`, a bias already subtracted from `x`. Where `x` itself needs no gradient this
            gives the bias its gradient, `-sum_b dx_b`, without forming `dx`.
    """

    x: torch.Tensor
    W_enc: torch.Tensor
    b_enc: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def dense(self) -> torch.Tensor:
        """`u`, `[batch, d_sae]`, with its gradient."""
        x = self.x if self.shift is None else self.x + (self.shift.detach() - self.shift)
        u = x @ self.W_enc
        return u if self.b_enc is None else u + self.b_enc

    def columns(self, latents: torch.Tensor) -> "Projection":
        """The same projection for the latents with these indices only."""
        b_enc = None if self.b_enc is None else self.b_enc[latents]
        return Projection(self.x, self.W_enc.index_select(1, latents), b_enc, self.shift)


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
    scale = None if rank_scale is None else rank_scale.detach()
    latents, values = [], []
    for tiles in _tiles(projection, scale):
        found = [(*top_k(u, min(k, u.shape[1]), ranking), first) for first, u in tiles]
        u_top = torch.cat([u for u, _, _ in found], dim=1)
        i_top = torch.cat([i + first for _, i, first in found], dim=1)
        if len(found) > 1:
            u_top, best = top_k(u_top, k, ranking)
            i_top = i_top.gather(1, best)
        latents.append(i_top.flatten())
        values.append(u_top.flatten())
    offsets = torch.arange(projection.x.shape[0] + 1, device=projection.x.device) * k
    support = Support(torch.cat(latents), offsets, projection.d_sae)
    u = torch.cat(values)
    if scale is not None:
        u /= scale[support.latents]
    return support, _with_gradient(u, support, projection)


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
    below = None if lower is None else -lower.detach()
    counts, latents, values = [], [], []
    for tiles in _tiles(projection, None):
        found = []
        n_rows = 0
        for first, u in tiles:
            columns = slice(first, first + u.shape[1])
            active = u > upper[columns]
            if below is not None:
                active |= u < below[columns]
            rows, hits = where_true(active)
            found.append((rows, hits + first, u[rows, hits]))
            n_rows = u.shape[0]
        rows, hits, u = (torch.cat(parts) for parts in zip(*found, strict=True))
        if len(found) > 1:
            order = rows.sort(stable=True).indices
            rows, hits, u = rows[order], hits[order], u[order]
        counts.append(torch.bincount(rows, minlength=n_rows))
        latents.append(hits)
        values.append(u)
    offsets = F.pad(torch.cat(counts).cumsum(0), (1, 0))
    support = Support(torch.cat(latents), offsets, projection.d_sae)
    return support, _with_gradient(torch.cat(values), support, projection)


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


def _tiles(
    projection: Projection, scale: torch.Tensor | None
) -> Iterator[Iterator[tuple[int, torch.Tensor]]]:
    """`u * scale` tile by tile: for each run of samples, (first latent, `[rows, columns]`) pairs.

    A tile is overwritten by the next one.
    """
    with torch.no_grad(), _as_autocast(projection) as (x, W_enc, b_enc):
        if scale is not None and b_enc is not None:
            b_enc = b_enc * scale
        max_rows, max_columns = _TILE.get(x.device.type, _TILE["cpu"])
        n_column_tiles = -(-projection.d_sae // max_columns)
        # A multiple of 64, so that the groups of `top_k` and the words of `where_true` fit.
        columns = -(-projection.d_sae // (64 * n_column_tiles)) * 64
        buffer = x.new_empty(min(max_rows, x.shape[0]) * min(columns, projection.d_sae))

        def of_rows(rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
            for first in range(0, projection.d_sae, columns):
                part = slice(first, min(first + columns, projection.d_sae))
                weights = W_enc[:, part]
                u = buffer[: rows.shape[0] * weights.shape[1]].view(rows.shape[0], -1)
                torch.mm(rows, weights, out=u)
                u = u.to(projection.W_enc.dtype)
                if scale is not None and b_enc is not None:
                    torch.addcmul(b_enc[part], u, scale[part], out=u)
                elif scale is not None:
                    u *= scale[part]
                elif b_enc is not None:
                    u += b_enc[part]
                yield first, u

        for rows in x.split(max_rows):
            yield of_rows(rows)


@contextmanager
def _as_autocast(
    projection: Projection,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """The factors of the product in the dtype autocast would take it in, with autocast off."""
    x, W_enc = projection.x.detach(), projection.W_enc.detach()
    b_enc = None if projection.b_enc is None else projection.b_enc.detach()
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, W_enc = x.to(dtype), W_enc.to(dtype)
    with torch.autocast(device, enabled=False):
        yield x, W_enc, b_enc


class _Encode(torch.autograd.Function):
    """Gives `u` at the pairs its gradient with respect to `x`, `W_enc`, `b_enc` and `shift`."""

    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        x: torch.Tensor,
        W_enc: torch.Tensor,
        b_enc: torch.Tensor | None,
        shift: torch.Tensor | None,
        support: Support,
    ) -> torch.Tensor:
        ctx.support = support
        ctx.save_for_backward(x, W_enc)
        return u.clone()

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[torch.Tensor | None, ...]:
        (g,) = grad_outputs
        x, W_enc = ctx.saved_tensors
        support: Support = ctx.support
        _, need_x, need_W, need_b, need_shift, _ = ctx.needs_input_grad
        with torch.autocast(g.device.type, enabled=False):
            dx = support.times(g, W_enc.t().contiguous()) if need_x else None
            dW = support.left_times(g, x) if need_W else None
            per_latent = support.sum_per_latent(g) if need_b or need_shift else None
            # sum_b dx_b = W_enc @ sum_b du_b: one product with a vector instead of the batch.
            dshift = -(W_enc @ per_latent) if need_shift else None
        return None, dx, dW, per_latent if need_b else None, dshift, None


def _with_gradient(u: torch.Tensor, support: Support, p: Projection) -> torch.Tensor:
    return _Encode.apply(u, p.x, p.W_enc, p.b_enc, p.shift, support)  # type: ignore[no-any-return]


class _Decode(torch.autograd.Function):
    """`D @ W_dec` and its gradient with respect to the pairs' values and `W_dec`."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, W_dec: torch.Tensor, support: Support
    ) -> torch.Tensor:
        ctx.support = support
        ctx.save_for_backward(values, W_dec)
        return support.times(values.detach(), W_dec.detach())

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[torch.Tensor | None, ...]:
        (g,) = grad_outputs
        values, W_dec = ctx.saved_tensors
        support: Support = ctx.support
        g = g.contiguous().to(W_dec.dtype)
        with torch.autocast(g.device.type, enabled=False):
            dvalues = support.dots(g, W_dec) if ctx.needs_input_grad[0] else None
            dW = support.transpose_times(values, g) if ctx.needs_input_grad[1] else None
        return dvalues, dW, None
