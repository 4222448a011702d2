"""SAELens's JumpReLU with the start and the L0 target that the signed architectures have.

`b_dec` starts at the data's mean, the decoder's rows at length 1, thresholds where `l0_target`
latents fire; the weight of the sparsity term then follows the target, as that of the gated SAEs.
Losses and gradients are SAELens's, in fewer passes over memory. Saved as SAELens's `jumprelu`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class
from sae_lens.saes.jumprelu_sae import (
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    calculate_pre_act_loss,
)
from sae_lens.saes.sae import SAEConfig, TrainStepInput
from typing_extensions import override

from recipes.abstopk.jumprelu_step import Gate, TanhSparsity
from sae_lens_bipolar.architectures.training.l0_control import L0ControlConfig, MeetsL0Target

NAME = "jumprelu_at_l0"


@dataclass
class JumpReLUAtL0TrainingSAEConfig(L0ControlConfig, JumpReLUTrainingSAEConfig):
    """The fields of SAELens's JumpReLU, and those of `L0ControlConfig`.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    STEERED: ClassVar[str] = "l0"

    @override
    @classmethod
    def architecture(cls) -> str:
        return NAME

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUSAEConfig


class JumpReLUAtL0TrainingSAE(MeetsL0Target, JumpReLUTrainingSAE):
    """`z = u` where `u > threshold`, else 0, with an `l0_coefficient` that follows `l0_target`."""

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = self.hook_sae_acts_pre(self.gate_scores(x))
        settings = (self.bandwidth, self.cfg.jumprelu_ste_to_input)
        z = Gate.apply(u, self.threshold.to(u.dtype), *settings)
        return self.hook_sae_acts_post(z), u

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        if self.cfg.jumprelu_sparsity_loss_mode != "tanh":
            return super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        norms = self.W_dec.norm(dim=1)
        sparsity = TanhSparsity.apply(feature_acts, norms, self.cfg.jumprelu_tanh_scale)
        losses = {"l0_loss": step_input.coefficients["l0"] * sparsity}
        if (weight := self.cfg.pre_act_loss_coefficient) is not None:
            threshold, dead = self.threshold.to(hidden_pre.dtype), step_input.dead_neuron_mask
            losses["pre_act_loss"] = calculate_pre_act_loss(
                weight, threshold, hidden_pre, dead, norms
            )
        return losses

    @override
    def gate_scores(self, x: torch.Tensor) -> torch.Tensor:
        return self.process_sae_in(x) @ self.W_enc + self.b_enc

    @override
    def set_thresholds(self, thresholds: torch.Tensor) -> None:
        self.threshold.copy_(thresholds)


if NAME not in SAE_TRAINING_CLASS_REGISTRY:
    register_sae_training_class(NAME, JumpReLUAtL0TrainingSAE, JumpReLUAtL0TrainingSAEConfig)
