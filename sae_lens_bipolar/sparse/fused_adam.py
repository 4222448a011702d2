"""Adam in one pass over memory, for the parameters of SAEs that ask for it.

Once everything else is sparse, a third of a training step of a wide SAE on CPU is Adam: SAELens's
trainer leaves `fused` unset (sae_lens 6.54, training/sae_trainer.py:117), and torch then takes the
path of about ten passes and two fresh copies of each parameter (torch 2.13, optim/adam.py:937).
`fused=True` is the same update in one pass, differing by rounding; so it is on CUDA. SAELens
builds the optimizer and an SAE never sees it, so the flag is set by a hook that torch calls before
any optimizer's step; optimizers without such a parameter are left alone.
"""

from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

_DEVICES = ("cpu", "cuda")
_asking = WeakTensorKeyDictionary()
_handle: RemovableHandle | None = None


def ask_for(parameter: torch.Tensor) -> None:
    """Make the Adam that trains `parameter`, and everything else in its group, the fused one."""
    _asking[parameter] = True


def enable() -> None:
    """Fuse the optimizers of parameters that ask for it, from their next step on."""
    global _handle
    if _handle is None:
        _handle = register_optimizer_step_pre_hook(_fuse)


def disable() -> None:
    """Undo `enable`. An optimizer that is fused already stays so."""
    global _handle
    if _handle is not None:
        _handle.remove()
        _handle = None


def _fuse(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if type(optimizer) is not torch.optim.Adam:
        return
    for group in optimizer.param_groups:
        parameters = group["params"]
        if (
            group["fused"] is None  # unset, as SAELens leaves it; False is a choice
            and group["foreach"] is None
            and not (group["differentiable"] or group["capturable"])
            and any(p in _asking for p in parameters)
            and all(p.device.type in _DEVICES and p.is_floating_point() for p in parameters)
        ):
            group["fused"] = True
            for p in parameters:
                if "step" in optimizer.state[p]:
                    step = optimizer.state[p]["step"]
                    step = torch.as_tensor(step, dtype=torch.float32, device=p.device)
                    optimizer.state[p]["step"] = step
