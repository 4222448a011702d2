"""Meeting an L0 target: thresholds from the first batch, and a controller for lambda.

Both gated families use it, so that they are compared at the L0 they were asked for.
"""

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig, TrainStepInput, TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.training.checks import check_fields
from sae_lens_bipolar.architectures.training.precision import kept_in_float32
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number

logger = logging.getLogger(__name__)

# Defaults of `l0_rate` and `l0_damping`. The running mean lags ten steps behind, so that a faster
# rate ripples.
L0_RATE = 0.02
L0_DAMPING = 2.0


@dataclass
class L0TargetConfig(TrainingSAEConfig):
    """The fields that `MeetsL0Target` reads, of every training configuration that has them.

    Args:
        l1_coefficient: lambda of the sparsity term; the starting value where `l0_target` is set.
        l1_warm_up_steps: steps over which lambda rises from 0; not with `l0_target`.
        l0_target: adapt lambda each step so that the running mean L0 meets this number of latents.
        l0_rate, l0_damping: how fast lambda follows a lasting excess of L0, and how strongly the
            present one; see `L0Controller`.
        threshold_init_l0: from the first batch, set thresholds at which this many latents fire.
        b_dec_init: "zeros", or "mean": the mean of the first batch.
        decoder_init_norm: norm of the decoder rows at the start; W_enc starts as the transpose.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    l1_coefficient: float = 1.0
    l1_warm_up_steps: int = 0
    l0_target: float | None = None
    l0_rate: float = L0_RATE
    l0_damping: float = L0_DAMPING
    threshold_init_l0: float | None = None
    b_dec_init: Literal["zeros", "mean"] = "zeros"
    decoder_init_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        require_number(self.l1_coefficient, "l1_coefficient", minimum=0)
        require_choice(self.b_dec_init, ("zeros", "mean"), "b_dec_init")
        for name in ("l0_target", "threshold_init_l0"):
            value = getattr(self, name)
            if value is not None:
                require_number(value, name, 0, exclusive=True)
                if value > self.d_sae:
                    raise ConfigError(
                        f"{name}={value!r} is not allowed: it must be at most d_sae ({self.d_sae})"
                    )
        require_l0_control(self.l0_rate, self.l0_damping)
        if self.l0_target is not None and self.l1_warm_up_steps > 0:
            raise ConfigError(
                f"l1_warm_up_steps is {self.l1_warm_up_steps} beside l0_target={self.l0_target}: "
                "the controller sets lambda itself; use l1_warm_up_steps=0"
            )
        if self.l0_target is not None and self.l1_coefficient == 0:
            raise ConfigError(
                f"l1_coefficient is 0 beside l0_target={self.l0_target}: the controller "
                "multiplies it; give a starting value above 0"
            )


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
        lambda      = l1_coefficient multiplier exp(damping excess)

    L0 drifts for as long as lambda is off, so the product alone overshoots and goes on swinging;
    the exponential acts at once and damps it. If L0 starts far above the target and answers late,
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
    SUSPECT = 100.0  # a multiplier from which a warning says what to do

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
        self.register_buffer("multiplier", torch.ones((), device=device))
        self.register_buffer("mean_l0", torch.zeros((), device=device))
        self.register_buffer("has_seen_data", torch.zeros((), device=device))

    def factor(self) -> float:
        """What `l1_coefficient` is multiplied by in the next step."""
        if self.target is None or not self.has_seen_data:
            return self.multiplier.item()
        multiplier, excess = self.multiplier.item(), self._excess(self.target).item()
        if multiplier > self.SUSPECT and excess > 0 and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "l0_target=%g: L0 is still %.4g, and lambda has grown to %.0f times "
                "l1_coefficient. When L0 gives way at last it may fall to 0. Set "
                "threshold_init_l0=%g, so that training starts at the target, or a larger "
                "l1_coefficient.",
                *(self.target, self.mean_l0.item(), multiplier, self.target),
            )
        return multiplier * math.exp(self.damping * excess)

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
        with kept_in_float32(self, "multiplier", "mean_l0"):
            super()._apply(*args, **kwargs)
        return self


class MeetsL0Target(TrainingSAE[Any]):
    """Mixin of the gated training SAEs: start from the first batch, then steer lambda.

    Reads the fields of `L0TargetConfig`. Subclasses say what a gate sees (`gate_scores`)
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

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if not self.l0_controller.has_seen_data:
            self._start_from(step_input.sae_in)
        l1_coefficient = step_input.coefficients["l1"] * self.l0_controller.factor()
        coefficients = {**step_input.coefficients, "l1": l1_coefficient}
        output = super().training_forward_pass(replace(step_input, coefficients=coefficients))
        self.l0_controller.update(output.feature_acts)
        output.metrics["l1_coefficient"] = l1_coefficient
        return output

    @torch.no_grad()
    def _start_from(self, sae_in: torch.Tensor) -> None:
        if self.cfg.b_dec_init == "mean":
            x = self.run_time_activation_norm_fn_in(self.reshape_fn_in(sae_in))
            self.b_dec.copy_(x.flatten(0, -2).mean(dim=0))
        if self.cfg.threshold_init_l0 is not None:
            scores = self.gate_scores(sae_in).flatten(0, -2)
            self.set_thresholds(thresholds_for_l0(scores, self.cfg.threshold_init_l0))

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
