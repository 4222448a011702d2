"""Encoder and decoder as one operation; its backward is one pass over the pairs of each latent."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import Projection


def reconstruct(
    support: Support,
    values: torch.Tensor,
    slope: torch.Tensor | None,
    projection: Projection,
    W_dec: torch.Tensor,
) -> torch.Tensor:
    """`[batch, d_in]` sums of `W_dec` rows weighted by `values`, which are a function of `u`.

    Dense equivalent: `support.to_dense(values) @ W_dec`, where `values` at a pair depends on the
    projection's `u` there alone. It is differentiable in `W_dec` and in the projection's tensors,
    not in `values`: the gradient runs from the reconstruction to the weights by Triton kernels,
    which `support.reading` must allow.

    Args:
        support: the pairs; of `batch` samples, or of a multiple: sample b is that of row
            `b % batch` of the projection.
        values: `[n_pairs]`.
        slope: `[n_pairs]`, the derivative of `values` by `u`; None: 1.
        projection: `u`.
        W_dec: `[d_sae, d_in]`.
    """
    p = projection
    slope = None if slope is None else slope.detach()
    arguments = (W_dec, p.x, p.W_enc, p.b_enc, p.shift, values.detach(), slope, support)
    with torch.autocast(W_dec.device.type, enabled=False):
        return _Reconstruct.apply(*arguments)  # type: ignore[no-any-return]


class _Reconstruct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_dec: torch.Tensor,
        x: torch.Tensor,
        W_enc: torch.Tensor,
        b_enc: torch.Tensor | None,
        shift: torch.Tensor | None,
        values: torch.Tensor,
        slope: torch.Tensor | None,
        support: Support,
    ) -> torch.Tensor:
        ctx.support = support
        read = W_dec.to(support.reading)  # once for both passes
        ctx.save_for_backward(read, x, W_enc, values, slope)
        return support.times(values, read)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[torch.Tensor | None, ...]:
        (g,) = grad_outputs
        W_dec, x, W_enc, values, slope = ctx.saved_tensors
        support: Support = ctx.support
        _, need_x, _, need_b, need_shift, *_ = ctx.needs_input_grad
        with torch.autocast(g.device.type, enabled=False):
            found = support.gradients(
                values=values, g=g, W_dec=W_dec, slope=slope, x=x, stores=need_x
            )
            dx = None
            if need_x and found.dvalues is not None:
                du = found.dvalues if slope is None else found.dvalues * slope
                dx = support.times(du, W_enc.t()).unflatten(0, (-1, len(x))).sum(0)
            # sum_b dx_b = W_enc @ sum_b du_b
            dshift = -(W_enc @ found.db_enc) if need_shift else None
        db = found.db_enc if need_b else None
        return found.dW_dec, dx, found.dW_enc, db, dshift, None, None, None
