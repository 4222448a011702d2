"""What a sparse training step feeds its encoder, and when hooks ask for the dense one."""

from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch import nn

from sae_lens_bipolar.sparse import Projection


def input_projection(sae: SAE[Any], x: torch.Tensor) -> Projection:
    """`u = process_sae_in(x) @ W_enc + b_enc` of an SAE (without `b_enc` where it has none).

    Args:
        sae: the SAE.
        x: activations, `[batch, d_in]`.
    """
    sae_in, shift = sae.process_sae_in(x), None
    if not x.requires_grad and not has_hooks(sae.hook_sae_input):
        # Then b_dec is all that needs a gradient through the input, and it comes cheaper.
        sae_in = sae_in.detach()
        shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else None
    b_enc = getattr(sae, "b_enc", None)
    return Projection(sae_in, sae.W_enc, b_enc, shift)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is hooked to a module, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
