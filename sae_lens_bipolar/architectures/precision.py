"""Parameters that stay in float32 whatever the dtype of the SAE."""

import torch
from torch import nn


def keep_float32(module: nn.Module, *names: str) -> None:
    """Cast the named parameters of `module` back to float32, in place.

    For an override of `_apply`: `module.to(dtype)` casts every float parameter, and SAELens's
    loaders call it with the SAE's dtype, but in bfloat16 Adam's steps on a threshold or a
    log step size round away (as `sae_lens/saes/jumprelu_sae.py` does for its threshold).
    A name that is not a parameter of `module` is passed over.
    """
    for name in names:
        parameter = module._parameters.get(name)
        if parameter is not None and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
