"""Where the SAEs of a sweep train: SAELens puts them on one device, here each may have its own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_bipolar.errors import ConfigError

_STATISTICS = ("act_freq_scores", "n_forward_passes_since_fired")  # of a trainer, `[d_sae]`


def require_device(name: str | None, field: str) -> None:
    """Raise `ConfigError` for a device that torch does not know, or that this machine lacks."""
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"{field}={name!r} is not allowed on this machine: {said}") from None


def dealt(names: Iterable[str], devices: Sequence[str]) -> dict[str, str]:
    """The device of each SAE: devices are dealt in turn, and again from the first."""
    return dict(zip(names, cycle(devices), strict=False))


def stays(sae: TrainingSAE[Any]) -> TrainingSAE[Any]:
    """`sae`, which stays on its device wherever SAELens's runner and trainer move it."""
    vars(sae)["to"] = lambda *args, **kwargs: sae
    return sae


def follow(trainer: SAETrainer[Any, Any]) -> None:
    """Bring what a trainer holds beside its SAE to the SAE's device."""
    device = trainer.sae.device
    if device == torch.device(trainer.cfg.device):
        return
    trainer.cfg = replace(trainer.cfg, device=str(device))
    for name in _STATISTICS:
        setattr(trainer, name, getattr(trainer, name).to(device))
    if trainer.cfg.autocast:
        trainer.autocast_if_enabled = torch.autocast(device.type, torch.bfloat16)


def read_copies(
    trainer: MultiSAETrainer, stored: torch.device
) -> dict[str, tuple[str, torch.device]]:
    """Let the SAEs of one hook and device read one copy of its activations.

    Args:
        stored: where the activation store has them.

    Returns:
        For each key that `trainer.hook_names` now has, the hook and the device.
    """
    copies, keys = {}, {}
    for name, hook in trainer.hook_names.items():
        device = trainer.saes[name].device
        keys[name] = hook if device == stored else f"{hook} on {device}"
        copies[keys[name]] = (hook, device)
    trainer.hook_names = keys
    return copies
