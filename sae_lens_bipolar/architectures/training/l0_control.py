"""Meeting an L0 target: thresholds from the first batch, and a controller for lambda.

The gated families and Bi-JumpReLU use it, so that they are compared at the L0 asked for.
"""

import logging
import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.training.checks import check_fields
from sae_lens_bipolar.architectures.training.precision import kept_in_float32
from sae_lens_bipolar.architectures.training.start import DataStartConfig, StartsFromData
from sae_lens_bipolar.errors import ConfigError, require_number

logger = logging.getLogger(__name__)

# Defaults of `l0_rate` and `l0_damping`. The running mean lags ten steps behind, so that a faster
# rate ripples, and winds lambda up where L0 answers late.
L0_RATE = 0.02
L0_DAMPING = 2.0


@dataclass
class L0ControlConfig(DataStartConfig):
    """The fields that `MeetsL0Target` reads, of every training configuration that has them.

    Args:
        l0_target: adapt lambda each step so that the running mean L0 meets this number of latents.
        l0_rate, l0_damping: how fast lambda follows a lasting excess of L0, and how strongly the
            present one; see `L0Controller`.
        threshold_init_l0: from the first batch, set thresholds at which this many latents fire;
            None: `l0_target`, 0: leave the thresholds as they are.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    STEERED: ClassVar[str] = "l1"  # the coefficient that is lambda; `X_coefficient` is its field

    l0_target: float | None = None  # latents per token that lambda is adapted to
    l0_rate: float = L0_RATE  # per step: how fast lambda follows a lasting excess of L0
    l0_damping: float = L0_DAMPING  # how strongly lambda answers the present excess of L0
    threshold_init_l0: float | None = None  # latents firing at the start; None: l0_target, 0: off

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        for name, exclusive in (("l0_target", True), ("threshold_init_l0", False)):
            value = getattr(self, name)
            if value is not None:
                require_number(value, name, 0, exclusive=exclusive)
                if value > self.d_sae:
                    raise ConfigError(
                        f"{name}={value!r} is not allowed: it must be at most d_sae ({self.d_sae})"
                    )
        require_l0_control(self.l0_rate, self.l0_damping)
        coefficient, warm_up = (f"{self.STEERED}_{end}" for end in ("coefficient", "warm_up_steps"))
        require_number(getattr(self, coefficient), coefficient, minimum=0)
        if self.l0_target is not None and getattr(self, warm_up) > 0:
            raise ConfigError(
                f"{warm_up} is {getattr(self, warm_up)} beside l0_target={self.l0_target}: "
                f"the controller sets lambda itself; use {warm_up}=0"
            )
        if self.l0_target is not None and getattr(self, coefficient) == 0:
            raise ConfigError(
                f"{coefficient} is 0 beside l0_target={self.l0_target}: the controller "
                "multiplies it; give a starting value above 0"
            )

    @property
    def first_l0(self) -> float | None:
        """Latents per token that the first batch's thresholds let through; None: not set by it."""
        chosen = self.threshold_init_l0
        return (self.l0_target if chosen is None else chosen) or None


@dataclass
class L0TargetConfig(L0ControlConfig):
    """`L0ControlConfig` of the gated SAEs, whose sparsity term is an L1.

    Args:
        l1_coefficient: lambda of the sparsity term; the starting value where `l0_target` is set.
        l1_warm_up_steps: steps over which lambda rises from 0; not with `l0_target`.
    """

    l1_coefficient: float = 1.0  # lambda of the sparsity term; with l0_target where it starts
    l1_warm_up_steps: int = 0  # steps over which lambda rises from 0; not with l0_target


def require_l0_control(l0_rate: float = L0_RATE, l0_damping: float = L0_DAMPING) -> None:
    """Raise `ConfigError` unless `l0_rate` is from 0 to 0.5 and `l0_damping` from 0 to 10."""
    require_number(l0_rate, "l0_rate", 0, maximum=0.5)
    require_number(l0_damping, "l0_damping", 0, maximum=10)


def thresholds_for_l0(scores: torch.Tensor, l0: float) -> torch.Tensor:
    """Per-latent thresholds `[d_sae]` above which `l0` latents fire on average.

    Each latent gets the quantile `1 - l0 / d_sae` of its own scores, so all fire equally often: in
    `round(batch l0 / d_sae)` samples of the batch, at least one.

    One sample has no quantiles, so there the latents share one threshold: the `round(l0)` latents
    with the highest scores fire, at least one and at most all but one.

    Args:
        scores: `[batch, d_sae]`; a latent fires where its score is above its threshold.
        l0: latents per token wanted, `0 < l0 <= d_sae`.
    """
    batch, d_sae = scores.shape
    if batch == 1 and d_sae > 1:
        return thresholds_for_l0(scores.t(), l0 / d_sae).expand(d_sae)
    fire = min(max(round(batch * l0 / d_sae), 1), batch - 1)
    # Half way between the last score that fires and the first that does not: on a score itself,
    # rounding would decide which side of its threshold that sample is.
    return scores.topk(fire + 1, dim=0).values[-2:].mean(dim=0)


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
        self.register_buffer("scale", torch.ones((), device=device))
        self.register_buffer("multiplier", torch.ones((), device=device))
        self.register_buffer("mean_l0", torch.zeros((), device=device))
        self.register_buffer("has_seen_data", torch.zeros((), device=device))

    def factor(self) -> float:
        """What `l1_coefficient` is multiplied by in the next step."""
        scale = self.scale.item()
        if self.target is None or not self.has_seen_data:
            return scale * self.multiplier.item()
        multiplier, excess = self.multiplier.item(), self._excess(self.target).item()
        if multiplier > self.SUSPECT and excess > 0 and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "l0_target=%g: L0 is still %.4g, and lambda has grown to %.0f times its starting "
                "value. When L0 gives way at last it may fall to 0. Set threshold_init_l0=%g, so "
                "that training starts at the target, or a larger coefficient of the sparsity term.",
                *(self.target, self.mean_l0.item(), multiplier, self.target),
            )
        return scale * multiplier * math.exp(self.damping * excess)

    def threshold_scale(self) -> float:
        """What thresholds are multiplied by before the next step: `1 + 0.05 excess`."""
        if self.target is None or not self.has_seen_data:
            return 1.0
        return 1 + self.THRESHOLD_RATE * self._excess(self.target).item()

    @torch.no_grad()
    def update(self, latents: torch.Tensor) -> None:
        """Take in one batch of latents, `[batch, d_sae]`."""
        l0 = latents.bool().float().sum(-1).mean()
        decay = self.DECAY * self.has_seen_data  # the first batch is the first mean
        self.mean_l0.mul_(decay).add_((1 - decay) * l0)
        self.has_seen_data.fill_(1.0)
        if self.target is not None:
            self.multiplier.mul_(1 + self.rate * self._excess(self.target)).clamp_(*self.BOUNDS)

    def _excess(self, target: float) -> torch.Tensor:
        return ((self.mean_l0 - target) / target).clamp(-1, 1)

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "L0Controller":
        # In bfloat16 a factor of 1.001 is 1, and the controller would stand still.
        with kept_in_float32(self, "scale", "multiplier", "mean_l0"):
            super()._apply(*args, **kwargs)
        return self


class MeetsL0Target(StartsFromData):
    """Mixin of training SAEs with thresholds: start from the first batch, then steer lambda.

    Reads the fields of `L0ControlConfig`. Subclasses say what a gate sees (`gate_scores`)
    and where its threshold is kept (`set_thresholds`).
    """

    def __init__(self, cfg: Any, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.l0_controller = L0Controller(
            cfg.l0_target, cfg.l0_rate, cfg.l0_damping, device=self.device
        )

    def gate_scores(self, x: torch.Tensor) -> torch.Tensor:
        """What is compared with the thresholds, `[batch, d_sae]`, of inputs `[batch, d_in]`."""
        raise NotImplementedError

    def set_thresholds(self, thresholds: torch.Tensor) -> None:
        """Take over initial thresholds, `[d_sae]`."""
        raise NotImplementedError

    # Where the penalty's gradient reaches few samples, L0 does not answer lambda; the thresholds
    # themselves are then scaled towards the target, and lambda stays.
    moves_thresholds: bool = False

    def scale_thresholds(self, scale: float) -> None:
        """Multiply the thresholds."""
        raise NotImplementedError

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        steered, factor = self.cfg.STEERED, self.l0_controller.factor()
        if self.moves_thresholds:
            factor = 1.0
            if (scale := self.l0_controller.threshold_scale()) != 1:
                self.scale_thresholds(scale)
        coefficient = step_input.coefficients[steered] * factor
        coefficients = {**step_input.coefficients, steered: coefficient}
        output = super().training_forward_pass(replace(step_input, coefficients=coefficients))
        self.l0_controller.update(output.feature_acts)
        output.metrics[f"{steered}_coefficient"] = coefficient
        return output

    @override
    def is_fresh(self, step_input: TrainStepInput) -> bool:
        return not self.l0_controller.has_seen_data

    @override
    @torch.no_grad()
    def start_from(self, sae_in: torch.Tensor) -> None:
        super().start_from(sae_in)
        if (l0 := self.cfg.first_l0) is not None:
            scores = self.gate_scores(sae_in).flatten(0, -2)
            self.set_thresholds(thresholds_for_l0(scores, l0))
        if self.cfg.l0_target is not None and not self.moves_thresholds:
            x = self.run_time_activation_norm_fn_in(self.reshape_fn_in(sae_in)).flatten(0, -2)
            lengths = (x - self.b_dec).norm(dim=-1) / x.shape[-1] ** 0.5
            self.l0_controller.scale.copy_(lengths.median())
        if not self.sparsity_is_chosen():
            field = f"{self.cfg.STEERED}_coefficient"
            logger.warning(
                "%s: nothing says how many latents per token shall fire, so %s=%g, the default, "
                "decides. Give l0_target=N for N per token, or choose %s.",
                *(self.cfg.architecture(), field, getattr(self.cfg, field), field),
            )

    def sparsity_is_chosen(self) -> bool:
        """Whether a target is set, or a coefficient other than the default."""
        default = {field.name: field.default for field in fields(self.cfg)}
        field = f"{self.cfg.STEERED}_coefficient"
        return self.cfg.l0_target is not None or getattr(self.cfg, field) != default[field]

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for name in [name for name in state_dict if name.startswith("l0_controller.")]:
            del state_dict[name]

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Let weights that were saved for inference start a further training run."""
        super().process_state_dict_for_loading(state_dict)
        fresh = L0Controller(None)
        fresh.has_seen_data.fill_(1.0)  # trained weights are not initialised again
        for name, value in fresh.named_buffers(prefix="l0_controller"):
            state_dict.setdefault(name, value)
