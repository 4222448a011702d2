"""The controller that steers lambda, or thresholds, so that the running mean L0 meets a target."""

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.training.early_copy import EarlyCopy
from sae_lens_bipolar.architectures.training.precision import kept_in_float32

logger = logging.getLogger(__name__)

# Defaults of `l0_rate` and `l0_damping`. L0 rises while an SAE learns, so that a slow rate stays
# behind: at 0.02, L0 is a quarter too high after 200 steps. The running mean lags ten steps behind,
# so that a fast rate needs damping, and a damping of 6 swings by itself.
L0_RATE = 0.05
L0_DAMPING = 4.0


class Numbers(NamedTuple):
    """What an `L0Controller` holds, on the host."""

    scale: float
    multiplier: float
    mean_l0: float
    excess: float  # of the running mean over the target, from -1 to 1; 0 without a target
    has_seen_data: float


class L0Controller(nn.Module):
    """Steers lambda so that the running mean L0 meets a target.

        mean_l0    <- 0.9 mean_l0 + 0.1 L0(batch)
        excess      = clip((mean_l0 - target) / target, -1, 1)
        multiplier <- clip(multiplier (1 + rate excess), 1e-4, 1e4)
        lambda      = l1_coefficient scale multiplier exp(damping excess)

    The squared error grows with |x|^2 and an L1 with |x|, so the lambda of one sparsity grows with
    |x|: `scale` is the median of |x - b_dec| / sqrt(d_in) in the first batch. L0 drifts for as long
    as lambda is off, so the product alone overshoots and goes on swinging; the exponential acts at
    once and damps it. If L0 starts far above the target and answers late,
    lambda winds up meanwhile and then shuts every gate: a warning says what to set instead. The
    controller's numbers are buffers, so they are in every training checkpoint and resume with it.
    Without a target the factor stays 1.

    Args:
        target: latents per token; None for no control.
        rate: how fast lambda follows a lasting excess, per step.
        damping: how strongly it answers the present excess; 0 leaves the product alone.
        device: of its numbers.
    """

    DECAY = 0.9
    BOUNDS = (1e-4, 1e4)  # if L0 does not answer, lambda would grow without end
    THRESHOLD_RATE = 0.05  # of the architectures whose thresholds follow L0 instead of lambda
    SUSPECT = 100.0  # a multiplier from which a warning says what to do

    scale: torch.Tensor
    multiplier: torch.Tensor
    mean_l0: torch.Tensor
    has_seen_data: torch.Tensor

    def __init__(
        self,
        target: float | None,
        rate: float = L0_RATE,
        damping: float = L0_DAMPING,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.target, self.rate, self.damping = target, rate, damping
        self.has_warned = False
        self._copy: EarlyCopy | None = None
        self._copied: tuple[int, ...] = ()
        self.register_buffer("scale", torch.ones((), device=device))
        self.register_buffer("multiplier", torch.ones((), device=device))
        self.register_buffer("mean_l0", torch.zeros((), device=device))
        self.register_buffer("has_seen_data", torch.zeros((), device=device))

    def factor(self) -> float:
        """What `l1_coefficient` is multiplied by in the next step."""
        scale, multiplier, mean_l0, excess, has_seen_data = self.numbers()
        if self.target is None or not has_seen_data:
            return scale * multiplier
        if multiplier > self.SUSPECT and excess > 0 and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "l0_target=%g: L0 is still %.4g, and lambda has grown to %.0f times its starting "
                "value. When L0 gives way at last it may fall to 0. Set threshold_init_l0=%g, so "
                "that training starts at the target, or a larger coefficient of the sparsity term.",
                *(self.target, mean_l0, multiplier, self.target),
            )
        return scale * multiplier * math.exp(self.damping * excess)

    def threshold_scale(self) -> float:
        """What thresholds are multiplied by before the next step: `1 + 0.05 excess`."""
        numbers = self.numbers()
        if self.target is None or not numbers.has_seen_data:
            return 1.0
        return 1 + self.THRESHOLD_RATE * numbers.excess

    def numbers(self) -> Numbers:
        """The controller's numbers; on a GPU copied early, when `update` made them."""
        if self._copy is None or self._copied != self._state():
            self._start_copy()
        assert self._copy is not None
        return Numbers(*self._copy.read())

    @torch.no_grad()
    def _start_copy(self) -> None:
        excess = self.mean_l0.new_zeros(()) if self.target is None else self._excess(self.target)
        held = (self.scale, self.multiplier, self.mean_l0, excess, self.has_seen_data)
        self._copy = EarlyCopy(torch.stack([number.float() for number in held]))
        self._copied = self._state()

    def _state(self) -> tuple[int, ...]:
        """Differs once a number has been written to or replaced."""
        held = (self.scale, self.multiplier, self.mean_l0, self.has_seen_data)
        return tuple(part for number in held for part in (id(number), number._version))

    @torch.no_grad()
    def update(self, latents: torch.Tensor) -> None:
        """Take in one batch of latents, `[batch, d_sae]`."""
        self.take_in(latents.bool().float().sum(-1).mean())

    @torch.no_grad()
    def take_in(self, l0: torch.Tensor) -> None:
        """Take in the L0 of one batch."""
        decay = self.DECAY * self.has_seen_data  # the first batch is the first mean
        self.mean_l0.mul_(decay).add_((1 - decay) * l0)
        self.has_seen_data.fill_(1.0)
        if self.target is not None:
            self.multiplier.mul_(1 + self.rate * self._excess(self.target)).clamp_(*self.BOUNDS)
        if self.mean_l0.is_cuda:
            self._start_copy()

    def _excess(self, target: float) -> torch.Tensor:
        return ((self.mean_l0 - target) / target).clamp(-1, 1)

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "L0Controller":
        # In bfloat16 a factor of 1.001 is 1, and the controller would stand still.
        with kept_in_float32(self, "scale", "multiplier", "mean_l0"):
            super()._apply(*args, **kwargs)
        self._copy = None
        return self
