"""Meeting an L0 target: thresholds from the first batch, and a controller for lambda.

The gated families and Bi-JumpReLU use it, so that they are compared at the L0 asked for.
"""

import logging
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_lens_bipolar.architectures.training.checks import check_fields
from sae_lens_bipolar.architectures.training.l0_controller import (
    L0_DAMPING,
    L0_RATE,
    L0Controller,
)
from sae_lens_bipolar.architectures.training.start import (
    DataStartConfig,
    StartsFromData,
    thresholds_for_l0,
)
from sae_lens_bipolar.errors import ConfigError, require_number

logger = logging.getLogger(__name__)


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
        self.observe(output.feature_acts)
        output.metrics[f"{steered}_coefficient"] = coefficient
        return output

    def observe(self, latents: torch.Tensor) -> None:
        """Tell the controller which latents fired, `[batch, d_sae]`."""
        self.l0_controller.update(latents)

    @override
    def is_fresh(self, step_input: TrainStepInput) -> bool:
        return not self.l0_controller.numbers().has_seen_data

    @override
    @torch.no_grad()
    def start_from(self, sae_in: torch.Tensor) -> None:
        super().start_from(sae_in)
        if (l0 := self.cfg.first_l0) is not None:
            scores = self.gate_scores(sae_in).flatten(0, -2)
            self.set_thresholds(thresholds_for_l0(scores, l0, self.cfg.d_sae))
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
