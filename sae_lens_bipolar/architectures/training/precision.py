"""Parameters that stay in float32 whatever the dtype of the SAE."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_in_float32(module: nn.Module, *names: str) -> Iterator[None]:
    """Give the named parameters of `module` back the float32 values they had before the block.

    To wrap `super()._apply(...)`: `module.to(dtype)` casts every float parameter, and SAELens's
    loaders call it with the SAE's dtype, but in bfloat16 Adam's steps on a threshold or a log step
    size round away (`sae_lens/saes/jumprelu_sae.py` casts its threshold back for that reason).
    A name that is not a parameter of `module` is passed over.
    """
    before = {
        name: parameter.data
        for name in names
        if (parameter := module._parameters.get(name)) is not None
    }
    yield
    for name, value in before.items():
        parameter = module.get_parameter(name)
        if parameter.dtype != torch.float32:
            parameter.data = value.to(parameter.device, torch.float32)
