"""A trainer in one process's form, and in the form of one rank of several; either way to the other.

A run starts, and writes its checkpoints, in the first form: that is why checkpoints are ordinary
ones, and why a run goes on with another number of ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer
from torch import nn
from torch.distributed.tensor import DTensor

from sae_lens_bipolar.runs.distributed.families import sharded_class, whole_class
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from sae_lens_bipolar.sparse import fused_adam

Trainer = SAETrainer[Any, Any]
_ON_ALL_RANKS = ("b_dec", "log_step_size")
_STATISTICS = ("act_freq_scores", "n_forward_passes_since_fired")  # of a trainer, `[d_sae]`


@dataclass
class Held:
    """What a trainer holds per latent, by name: an SAE's tensors, Adam's of them, statistics."""

    sae_class: type[Any]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, torch.Tensor]
    adam: dict[str, dict[str, torch.Tensor]]  # of each parameter; empty before the first step
    statistics: dict[str, torch.Tensor]


def held_by(trainer: Trainer) -> Held:
    """What `trainer` holds now."""
    sae = trainer.sae
    return Held(
        sae_class=type(sae),
        parameters={name: p for name, p in sae._parameters.items() if p is not None},
        buffers={name: b for name, b in sae._buffers.items() if b is not None},
        adam={
            name: dict(trainer.optimizer.state.get(p, {}))
            for name, p in sae._parameters.items()
            if p is not None
        },
        statistics={name: getattr(trainer, name) for name in _STATISTICS},
    )


def hold(trainer: Trainer, held: Held) -> None:
    """Put `held` in the place of what `trainer` holds."""
    sae, optimizer = trainer.sae, trainer.optimizer
    sae.__class__ = held.sae_class
    sae._parameters.update(held.parameters)
    sae._buffers.update(held.buffers)
    sae.activation_fn = sae.get_activation_fn()
    (group,) = optimizer.param_groups
    group["params"] = list(sae.parameters())
    optimizer.state.clear()
    for name, state in held.adam.items():
        if state:
            optimizer.state[held.parameters[name]] = state
    for name, statistic in held.statistics.items():
        setattr(trainer, name, statistic)


def sharded_dim(name: str, shape: torch.Size, d_sae: int) -> int | None:
    """The dimension of an SAE's tensor that counts latents; None for what all ranks hold."""
    if name == "W_dec":
        return 0
    if name in _ON_ALL_RANKS or not shape or shape[-1] != d_sae:
        return None
    return len(shape) - 1


def shard(trainer: Trainer, ranks: Ranks) -> None:
    """Leave each rank its own latents of a trainer that all ranks hold alike.

    Raises:
        ConfigError: if the architecture trains in one process only, or a rank would get no latent.
    """
    sae_class, d_sae = sharded_class(trainer.sae), trainer.sae.cfg.d_sae
    ranks.require_latents(d_sae)

    def distributed(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return ranks.distributed(tensor.detach(), sharded_dim(name, tensor.shape, d_sae))

    def sharded_buffer(name: str, buffer: torch.Tensor) -> torch.Tensor:
        # One that all ranks hold is assigned to in a step, so it stays an ordinary tensor.
        per_latent = sharded_dim(name, buffer.shape, d_sae) is not None
        return distributed(name, buffer) if per_latent else buffer

    held = _mapped(held_by(trainer), sae_class, distributed, sharded_buffer, ranks.part)
    trainer.sae.ranks = ranks
    hold(trainer, held)
    fused_adam.ask_for(held.parameters["W_dec"])
    trainer._reset_running_sparsity_stats = partial(_reset_statistics, trainer)  # type: ignore[method-assign]


@contextmanager
def whole(trainer: Trainer, ranks: Ranks) -> Iterator[None]:
    """Inside, the first rank's trainer is as one process would have it; all ranks take part.

    The tensors are put together one after the other, in the first rank's main memory.
    """
    d_sae = trainer.sae.cfg.d_sae

    def together(part: torch.Tensor, dim: int) -> torch.Tensor:
        found = ranks.gather_uneven(part, dim, d_sae)
        return found.cpu() if ranks.is_first else found.new_empty(0)

    def of_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        local, dim = tensor.to_local().detach(), sharded_dim(name, tensor.shape, d_sae)
        return local if dim is None else together(local, dim)

    sharded = held_by(trainer)
    held = _mapped(sharded, whole_class(trainer.sae), of_tensor, of_tensor, together)
    if ranks.is_first:
        hold(trainer, held)
    try:
        yield
    finally:
        hold(trainer, sharded)


def _mapped(
    held: Held,
    sae_class: type[Any],
    tensor: Callable[[str, torch.Tensor], torch.Tensor],
    buffer: Callable[[str, torch.Tensor], torch.Tensor],
    statistic: Callable[[torch.Tensor, int], torch.Tensor],
) -> Held:
    """`held` with each tensor changed; Adam's are changed as their parameters are."""
    return Held(
        sae_class=sae_class,
        parameters={n: nn.Parameter(tensor(n, p)) for n, p in held.parameters.items()},
        buffers={n: buffer(n, b) for n, b in held.buffers.items()},
        adam={
            n: {key: tensor(n, value) if value.ndim else value for key, value in state.items()}
            for n, state in held.adam.items()
        },
        statistics={n: statistic(s, 0) for n, s in held.statistics.items()},
    )


@torch.no_grad()
def _reset_statistics(trainer: Trainer) -> None:
    """SAELens's `_reset_running_sparsity_stats`, of this rank's latents."""
    trainer.act_freq_scores = torch.zeros_like(trainer.act_freq_scores)
    trainer.n_frac_active_samples = 0
