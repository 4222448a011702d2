"""The two-sided JumpReLU, which the AbsTopK paper (section 2.3) leaves to future work.

With `u = (x - b_dec) W_enc + b_enc` and thresholds `t+, t- >= 0` per latent:

    z    = u where u > t+ or u < -t-, else 0        [batch, d_sae]
         = JumpReLU(u, t+) - JumpReLU(-u, t-)
    xhat = z W_dec + b_dec                          [batch, d_in]

It is the proximal operator of `lambda+ 1[z > 0] + lambda- 1[z < 0]` summed over latents, with
`t = sqrt(2 lambda)` on each side (Lemma 1, case II, without the non-negativity). Training uses
SAELens's own `JumpReLU` and `Step` functions on `u` and on `-u`, and its configuration fields, so
a model equals SAELens's `jumprelu` of twice the width with weights `[W_enc, -W_enc]`,
`[b_enc, -b_enc]`, `[W_dec; -W_dec]`, `[t+, t-]`: in its loss, and in its gradients by the chain
rule through those signs.

Sources: arXiv 2510.00404 (AbsTopK), arXiv 2407.14435 (JumpReLU SAEs and their straight-through
gradients), Anthropic's January 2025 update (tanh penalty), Gemma Scope 2 (quadratic penalty).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sae_lens.saes.jumprelu_sae import (
    JumpReLU,
    JumpReLUTrainingSAEConfig,
    Step,
    calculate_pre_act_loss,
)
from sae_lens.saes.sae import (
    SAE,
    SAEConfig,
    TrainCoefficientConfig,
    TrainingSAE,
    TrainStepInput,
)
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.citations import ABSTOPK, JUMPRELU
from sae_lens_bipolar.architectures.record import DECODE, LINEAR, Architecture, Sides
from sae_lens_bipolar.architectures.training.checks import check_fields
from sae_lens_bipolar.architectures.training.l0_control import L0ControlConfig, MeetsL0Target
from sae_lens_bipolar.architectures.training.precision import kept_in_float32
from sae_lens_bipolar.architectures.training.start import SHARED_ROW_NORM
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number

_THRESHOLDS = ("threshold_positive", "threshold_negative")


@dataclass
class BiJumpReLUSAEConfig(SAEConfig):
    """Configuration of `BiJumpReLUSAE`: the fields of every SAELens SAE."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bi_jumprelu"

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()


class _TwoSidedJump(SAE[Any]):
    """What the inference and the training class share: parameters, decoder, folding."""

    b_enc: nn.Parameter  # [d_sae]
    threshold_positive: nn.Parameter  # [d_sae], in units of u
    threshold_negative: nn.Parameter  # [d_sae], in units of u; the latent fires where u < -t-

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        for name in ("b_enc", *_THRESHOLDS):
            zeros = torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device)
            setattr(self, name, nn.Parameter(zeros))

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """`u = (x - b_dec) W_enc + b_enc`, `[..., d_sae]` from `[..., d_in]`."""
        return self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstruction `z W_dec + b_dec`, `[..., d_in]`."""
        recons = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Move the decoder norms into the encoder; the thresholds scale with `u`."""
        norms = self.fold_and_get_W_dec_norm()
        self.threshold_positive.data.mul_(norms)
        self.threshold_negative.data.mul_(norms)


class BiJumpReLUSAE(_TwoSidedJump):
    """Inference-only two-sided JumpReLU: `z = u` where `u > t+` or `u < -t-`, else 0.

    `W_enc [d_in, d_sae]`, `W_dec [d_sae, d_in]`; also how `batch_abstopk` models are saved.
    """

    cfg: BiJumpReLUSAEConfig

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Signed latents `z`, `[..., d_sae]`, of activations `x`, `[..., d_in]`."""
        u = self.pre_activations(x)
        fires = (u > self.threshold_positive) | (-u > self.threshold_negative)
        return self.hook_sae_acts_post(torch.where(fires, u, 0.0))


@dataclass
class BiJumpReLUTrainingSAEConfig(L0ControlConfig, JumpReLUTrainingSAEConfig):
    """Configuration of `BiJumpReLUTrainingSAE`: the fields and meanings of SAELens's `jumprelu`,
    and those of `L0ControlConfig`: with `l0_target`, the thresholds follow it.

    Args:
        jumprelu_init_threshold: initial threshold of both sides, in units of u; 0 or more.
        jumprelu_sparsity_loss_mode: "step", "tanh" or "quadratic", summed over both sides.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    STEERED: ClassVar[str] = "l0"
    decoder_init_norm: float | None = SHARED_ROW_NORM

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bi_jumprelu"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return BiJumpReLUSAEConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        modes = ("step", "tanh", "quadratic")
        require_choice(self.jumprelu_sparsity_loss_mode, modes, "jumprelu_sparsity_loss_mode")
        # A negative threshold would let both sides of a latent fire at once.
        require_number(self.jumprelu_init_threshold, "jumprelu_init_threshold", minimum=0)
        require_number(self.jumprelu_bandwidth, "jumprelu_bandwidth", minimum=0, exclusive=True)
        if self.pre_act_loss_coefficient is not None:
            require_number(self.pre_act_loss_coefficient, "pre_act_loss_coefficient", minimum=0)
        if self.jumprelu_sparsity_loss_mode == "quadratic":
            require_number(self.target_l0, "target_l0", 0, maximum=self.d_sae, exclusive=True)
            if self.l0_target is not None:
                raise ConfigError(
                    f"l0_target={self.l0_target} is not allowed beside the quadratic penalty, "
                    f"which aims at target_l0={self.target_l0}: leave one of the two out"
                )


class BiJumpReLUTrainingSAE(MeetsL0Target, _TwoSidedJump, TrainingSAE[BiJumpReLUTrainingSAEConfig]):
    """Training two-sided JumpReLU: squared error plus a sparsity penalty over both sides.

        step       lambda (L0+ + L0-)
        tanh       lambda sum_i tanh(c |z_i| |W_dec_i|)
        quadratic  lambda 2 / L0* (L0+ + L0- - L0*)^2

    The thresholds are float32 parameters, projected to 0 or more before they are used or saved.
    With `l0_target` they start where that many latents fire, and are scaled towards it before
    each step: the estimator's window holds too few samples for lambda to steer by.
    """

    cfg: BiJumpReLUTrainingSAEConfig
    moves_thresholds = True

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        for name in _THRESHOLDS:
            initial = torch.full_like(
                getattr(self, name), self.cfg.jumprelu_init_threshold, dtype=torch.float32
            )
            setattr(self, name, nn.Parameter(initial))

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "BiJumpReLUTrainingSAE":
        with kept_in_float32(self, *_THRESHOLDS):
            super()._apply(*args, **kwargs)
        return self

    @override
    def gate_scores(self, x: torch.Tensor) -> torch.Tensor:
        return (self.process_sae_in(x) @ self.W_enc + self.b_enc).abs()

    @override
    def set_thresholds(self, thresholds: torch.Tensor) -> None:
        for name in _THRESHOLDS:
            getattr(self, name).copy_(thresholds)

    @override
    @torch.no_grad()
    def scale_thresholds(self, scale: float) -> None:
        for name in _THRESHOLDS:
            getattr(self, name).mul_(scale)

    @override
    def sparsity_is_chosen(self) -> bool:
        quadratic = self.cfg.jumprelu_sparsity_loss_mode == "quadratic"
        return quadratic or super().sparsity_is_chosen()

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `z` and pre-activations `u`, `[batch, d_sae]` each."""
        # In place, so that a threshold at 0 keeps its gradient. Below 0, where the optimizer's step
        # may leave it, both sides of a latent would fire at once.
        for name in _THRESHOLDS:
            getattr(self, name).data.clamp_(min=0.0)
        u = self.pre_activations(x)
        positive, negative = self._both_sides(JumpReLU, u)
        return self.hook_sae_acts_post(positive - negative), u

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        for name in _THRESHOLDS:  # the last step's, which no encoding has projected yet
            state_dict[name].clamp_(min=0.0)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The sparsity penalty, and the pre-activation loss where it is on; batch means.

        The pre-activation loss of a dead latent is that of both its sides. Inside the dead zone
        their gradients on `u` cancel, so it lowers the two thresholds.
        """
        W_dec_norm = self.W_dec.norm(dim=1)
        if self.cfg.jumprelu_sparsity_loss_mode == "tanh":
            # By side, not on |z|: below its threshold, each side's slope at 0 drives its estimator.
            positive, negative = self._both_sides(JumpReLU, hidden_pre)
            scale = self.cfg.jumprelu_tanh_scale * W_dec_norm
            penalty = (torch.tanh(positive * scale) + torch.tanh(negative * scale)).sum(dim=-1)
        else:
            positive, negative = self._both_sides(Step, hidden_pre)
            penalty = (positive + negative).sum(dim=-1)
            if self.cfg.jumprelu_sparsity_loss_mode == "quadratic":
                target = self.cfg.target_l0
                assert target is not None  # the configuration has checked it
                penalty = 2 / target * (penalty - target) ** 2
        losses = {"l0_loss": (step_input.coefficients["l0"] * penalty).mean()}
        if self.cfg.pre_act_loss_coefficient is not None:
            positive, negative = (
                calculate_pre_act_loss(
                    self.cfg.pre_act_loss_coefficient,
                    threshold.to(hidden_pre.dtype),
                    u,
                    step_input.dead_neuron_mask,
                    W_dec_norm,
                )
                for threshold, u in (
                    (self.threshold_positive, hidden_pre),
                    (self.threshold_negative, -hidden_pre),
                )
            )
            losses["pre_act_loss"] = positive + negative
        return losses

    def _both_sides(
        self, function: type[JumpReLU] | type[Step], u: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`function(u, t+)` and `function(-u, t-)`, each `[batch, d_sae]`."""
        options = (self.cfg.jumprelu_bandwidth, self.cfg.jumprelu_ste_to_input)
        positive = function.apply(u, self.threshold_positive.to(u.dtype), *options)
        negative = function.apply(-u, self.threshold_negative.to(u.dtype), *options)
        return positive, negative  # type: ignore[return-value]

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"l0": TrainCoefficientConfig(self.cfg.l0_coefficient, self.cfg.l0_warm_up_steps)}


def _sides(sae: BiJumpReLUSAE) -> Sides:
    thresholds = (sae.threshold_positive, sae.threshold_negative)
    return Sides(bias=(sae.b_enc, -sae.b_enc), threshold=thresholds)


RECORD = Architecture(
    name="bi_jumprelu",
    title="Bi-JumpReLU: a threshold on each side of a latent",
    formula=f"{LINEAR}z    = u where u > t+ or u < -t-, else 0\n{DECODE}\n"
    "with t+, t- = threshold_positive, threshold_negative",
    source="after arXiv 2407.14435 and 2510.00404",
    cites=(JUMPRELU, ABSTOPK),
    signed=True,
    when="Where a learned threshold per side is wanted and L0 may vary from token to token.",
    training=(BiJumpReLUTrainingSAE, BiJumpReLUTrainingSAEConfig),
    inference=(BiJumpReLUSAE, BiJumpReLUSAEConfig),
    sides=_sides,
    at_l0=lambda d_sae, l0: {"l0_target": l0},
)
