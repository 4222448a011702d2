"""The encoder's product, tile by tile, and its gradient from active pairs alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.products import fast_products

# Samples and latents of one tile of the projection. With fewer samples the encoder's product slows
# down, because the weights are packed anew for every tile; on CPU a tile stays below the 32 MiB
# from which glibc returns memory at once, and each tile would be paged in again.
_TILE = {"cpu": (512, 14336), "cuda": (4096, 16384)}
# Of a tile that Triton kernels search, and the fewest samples that keep the product busy.
_ENTRIES, _FEWEST_ROWS = 1 << 28, 512


@dataclass(frozen=True, eq=False)
class Projection:
    """`u = x @ W_enc + b_enc`, not computed yet.

    Dense equivalent: `Projection(...).dense()`.

    Args:
        x: encoder input, `[batch, d_in]`.
        W_enc: `[d_in, d_sae]`.
        b_enc: `[d_sae]`, or None.
        shift: `[d_in]`, a bias already subtracted from `x`. If `x` itself needs no gradient, this
            gives the bias its gradient, `-sum_b dx_b`, without forming `dx`.
        reading: see `Support`.
    """

    x: torch.Tensor
    W_enc: torch.Tensor
    b_enc: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    reading: torch.dtype | None = None

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
        W_enc = self.W_enc.index_select(1, latents)
        return Projection(self.x, W_enc, b_enc, self.shift, self.reading)

    def twice(self) -> "Projection":
        """The same projection for every sample twice: the batch, then the batch again."""
        return replace(self, x=torch.cat([self.x, self.x]))


class Tile(NamedTuple):
    """Some columns of `u * scale` for some samples, as the encoder's product left them.

    `u * scale = product * scale + bias`; the two stand in the parameters' dtype, or are None.
    """

    first: int  # latent of the first column
    product: torch.Tensor  # `[rows, columns]`, in the dtype that the product was taken in
    bias: torch.Tensor | None  # `[columns]`, `b_enc * scale`
    scale: torch.Tensor | None  # `[columns]`

    def columns(self, chosen: torch.Tensor) -> "Tile":
        """The columns with these indices only, as a copy."""
        bias, scale = (None if t is None else t[chosen] for t in (self.bias, self.scale))
        return Tile(0, self.product.index_select(1, chosen), bias, scale)

    def finished(self, dtype: torch.dtype) -> torch.Tensor:
        """`u * scale`, `[rows, columns]`; the product is used up."""
        u = self.product.to(dtype)
        if self.scale is not None and self.bias is not None:
            return torch.addcmul(self.bias, u, self.scale, out=u)
        if self.scale is not None:
            return u.mul_(self.scale)
        return u if self.bias is None else u.add_(self.bias)


def tiles_of(projection: Projection, scale: torch.Tensor | None = None) -> Iterator[Iterator[Tile]]:
    """`u * scale` tile by tile: for each run of samples, its tiles.

    A tile is overwritten by the next one.
    """
    with torch.no_grad(), _as_autocast(projection) as (x, W_enc, b_enc):
        if scale is not None and b_enc is not None:
            b_enc = b_enc * scale
        max_rows, max_columns = _TILE.get(x.device.type, _TILE["cpu"])
        if projection.reading is not None:  # kernels search whole rows
            max_rows, max_columns = max(_FEWEST_ROWS, _ENTRIES // projection.d_sae), 1 << 31
        n_column_tiles = -(-projection.d_sae // max_columns)
        # A multiple of 64, so that the groups of `top_k` and the words of `where_true` fit.
        columns = -(-projection.d_sae // (64 * n_column_tiles)) * 64
        buffer = x.new_empty(min(max_rows, x.shape[0]) * min(columns, projection.d_sae))

        def of_rows(rows: torch.Tensor) -> Iterator[Tile]:
            for first in range(0, projection.d_sae, columns):
                part = slice(first, min(first + columns, projection.d_sae))
                weights = W_enc[:, part]
                u = buffer[: rows.shape[0] * weights.shape[1]].view(rows.shape[0], -1)
                with fast_products(u.device):
                    torch.mm(rows, weights, out=u)
                bias, own_scale = (None if t is None else t[part] for t in (b_enc, scale))
                yield Tile(first, u, bias, own_scale)

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
        dW = per_latent = None
        with torch.autocast(g.device.type, enabled=False):
            dx = support.times(g, W_enc.t().contiguous()) if need_x else None
            if need_W:
                dW, per_latent = support.left_times_and_sums(g, x)
            elif need_b or need_shift:
                per_latent = support.sum_per_latent(g)
            # sum_b dx_b = W_enc @ sum_b du_b: one product with a vector instead of the batch.
            dshift = -(W_enc @ per_latent) if need_shift else None
        return None, dx, dW, per_latent if need_b else None, dshift, None


def with_gradient(u: torch.Tensor, support: Support, p: Projection) -> torch.Tensor:
    """`u` at the pairs of a support, differentiable with respect to the projection's tensors."""
    return _Encode.apply(u, p.x, p.W_enc, p.b_enc, p.shift, support)  # type: ignore[no-any-return]
