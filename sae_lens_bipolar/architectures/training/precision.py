"""Which numbers are held in which precision, whatever the dtype and the device of the SAE."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_WITHOUT_FLOAT64 = ("mps",)  # kinds of device


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float64, for sums; on the CPU where its own device has no float64 (MPS)."""
    return (tensor.cpu() if tensor.device.type in _WITHOUT_FLOAT64 else tensor).double()


@contextmanager
def kept_in_float32(module: nn.Module, *names: str, or_wider: bool = False) -> Iterator[None]:
    """Give the named tensors of `module` back the float32 values they had before the block.

    To wrap `super()._apply(...)`: `module.to(dtype)` casts every float tensor, and SAELens's
    loaders call it with the SAE's dtype, but in bfloat16 Adam's steps on a threshold or a log step
    size round away (`sae_lens/saes/jumprelu_sae.py` casts its threshold back for that reason).

    Args:
        module: the module that holds the tensors.
        names: of parameters or buffers; one that `module` does not have is passed over.
        or_wider: do not change a tensor that is in float64 after the block.
    """
    before = {name: tensor.data for name in names if (tensor := _own(module, name)) is not None}
    yield
    for name, value in before.items():
        tensor = _own(module, name)
        if tensor is None or tensor.dtype == torch.float32:
            continue
        if not (or_wider and tensor.dtype == torch.float64):
            tensor.data = value.to(tensor.device, torch.float32)


def _own(module: nn.Module, name: str) -> torch.Tensor | None:
    parameter = module._parameters.get(name)
    return module._buffers.get(name) if parameter is None else parameter
