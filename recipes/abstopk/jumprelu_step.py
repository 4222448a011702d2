"""The two dense parts of JumpReLU's training step, in fewer passes over `[batch, d_sae]` tensors.

On a CPU these passes, not the products, take most of a step of `JumpReLUTrainingSAE`. Values and
gradients are those of `sae_lens.saes.jumprelu_sae`, up to the order of sums.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

# `values` where `x > low`, or `low < x < high`, else 0, in one pass: torch names them after the
# activation functions whose gradients they are. Comparing, then masking, takes three.
_where_positive = torch.ops.aten.threshold_backward.default
_where_between = torch.ops.aten.hardtanh_backward.default


class Gate(torch.autograd.Function):
    """`z = u` where `u > threshold`, else 0, with the gradients of SAELens's `JumpReLU`.

    With `w = threshold / bandwidth` where `|u - threshold| < bandwidth / 2`, else 0, and the
    gradient `g` of `z`: that of `u` is `g` where the gate is open, plus `w g` if `ste_to_input`;
    that of `threshold` is the sum of `-w g` over the batch. `u` and `z` are `[batch, d_sae]`,
    `threshold` is `[d_sae]`. Source: JumpReLU SAEs, arXiv 2407.14435.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, u: torch.Tensor, threshold: torch.Tensor, bandwidth: float, ste_to_input: bool
    ) -> torch.Tensor:
        above = u - threshold
        ctx.save_for_backward(above, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return _where_positive(u, above, 0.0)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, g: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        above, threshold = ctx.saved_tensors
        weight, half = threshold / ctx.bandwidth, ctx.bandwidth / 2
        near = _where_between(g, above, -half, half)
        of_threshold = near.sum(0).mul_(weight).neg_()
        of_u = _where_positive(g, above, 0.0)
        return of_u.addcmul_(near, weight) if ctx.ste_to_input else of_u, of_threshold, None, None


class TanhSparsity(torch.autograd.Function):
    """Mean over the batch of `sum_i tanh(scale z_i |d_i|)`, the "tanh" mode of SAELens's JumpReLU.

    Only latents that fire add to it; the gradient at the others is `scale |d_i| / batch`. `z` is
    `[batch, d_sae]`, `norms` the lengths `|d_i|` of the decoder's rows, `[d_sae]`.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, z: torch.Tensor, norms: torch.Tensor, scale: float
    ) -> torch.Tensor:
        places = z.flatten().nonzero().squeeze(1)
        fired = z.flatten()[places]
        latents = places % z.shape[-1]
        tanh = (scale * fired * norms[latents]).tanh()
        ctx.save_for_backward(places, latents, fired, tanh, norms)
        ctx.scale, ctx.shape = scale, z.shape
        return tanh.sum() / (z.numel() // z.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, g: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        places, latents, fired, tanh, norms = ctx.saved_tensors
        shape = ctx.shape
        each = g * ctx.scale / (shape.numel() // shape[-1])
        slope = each * (1 - tanh.square())
        of_z = (each * norms).expand(shape).contiguous()
        of_z.view(-1)[places] = slope * norms[latents]
        of_norms = torch.zeros_like(norms).index_add_(0, latents, slope * fired)
        return of_z, of_norms, None
