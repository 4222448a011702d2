"""Stock gated SAEs given the same start and the same L0 controller as the sign-aware ones.

The baseline of every fair comparison with `sign_aware_gated`: SAELens's own gated parameters, loss
and saved files (arXiv 2404.16014), plus what `MeetsL0Target` adds.
"""

from dataclasses import dataclass, replace

import torch
from sae_lens.saes.gated_sae import (
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEConfig, TrainStepInput
from typing_extensions import override

from sae_lens_bipolar.architectures.citations import GATED
from sae_lens_bipolar.architectures.record import DECODE, Architecture
from sae_lens_bipolar.architectures.training.gate import Polarities
from sae_lens_bipolar.architectures.training.gated_step import GatedOnPairs
from sae_lens_bipolar.architectures.training.l0_control import L0TargetConfig
from sae_lens_bipolar.sparse.projection import Projection


@dataclass
class GatedL0TrainingSAEConfig(L0TargetConfig, GatedTrainingSAEConfig):
    """Configuration of `GatedL0TrainingSAE`; saved for inference as stock `gated`.

    See `L0TargetConfig` for the fields; the thresholds are `-b_gate`.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "gated_l0"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return GatedSAEConfig


class _GatedOnHeads(GatedTrainingSAE):
    """SAELens's class, except that its gate path also flattens the heads of `hook_z`."""

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The losses of flat activations; that of the reconstruction is a mean over heads, as the
        main loss is.
        """
        x = step_input.sae_in
        flat = self.reshape_fn_in(x)
        losses = super().calculate_aux_loss(
            replace(step_input, sae_in=flat), feature_acts, hidden_pre, sae_out
        )
        if flat.ndim < x.ndim:
            name = "auxiliary_reconstruction_loss"
            losses[name] = losses[name] / x.shape[-2]
        return losses


class GatedL0TrainingSAE(GatedOnPairs, _GatedOnHeads):
    """SAELens's gated training SAE with an L0 target; same loss, `lambda` adapted each step.

    In the terms of `BiJumpReLU` it is one-sided: threshold `-b_gate`, gain `exp(r_mag)`, bias
    `b_mag`; its sparsity and auxiliary terms train the decoder too, as SAELens's do.
    """

    cfg: GatedL0TrainingSAEConfig  # type: ignore[assignment]
    is_two_sided = False
    aux_weight = 1.0

    def polarities(self, latents: torch.Tensor | None = None) -> Polarities:
        """The one side's parameters, `[d_sae]` each, or gathered at the indices `latents`."""
        sides = self.b_gate, self.r_mag, self.b_mag
        if latents is not None:
            sides = (p.index_select(0, latents) for p in sides)
        b_gate, r_mag, b_mag = sides
        gain = r_mag.exp()
        return Polarities(-b_gate, -b_gate, gain, gain, b_mag, b_mag)

    @override
    def preactivations(self, projection: Projection) -> tuple[Projection, torch.Tensor | None]:
        """SAELens's hidden_pre of gated SAEs is the magnitude path, `exp(r_mag) u + b_mag`."""
        gain = self.r_mag.exp()
        return replace(projection, b_enc=self.b_mag / gain), gain

    @override
    def gate_scores(self, x: torch.Tensor) -> torch.Tensor:
        return self.process_sae_in(x) @ self.W_enc

    @override
    def set_thresholds(self, thresholds: torch.Tensor) -> None:
        self.b_gate.copy_(-thresholds)


RECORD = Architecture(
    name="gated_l0",
    title="Gated, trained to an L0 target",
    formula="v    = (x - b_dec) W_enc\nz    = 1[v + b_gate > 0] relu(exp(r_mag) v + b_mag)\n"
    f"{DECODE}",
    source="arXiv 2404.16014",
    cites=(GATED,),
    signed=False,
    when="The non-negative baseline beside sign_aware_gated, at the same L0 target.",
    training=(GatedL0TrainingSAE, GatedL0TrainingSAEConfig),
    at_l0=lambda d_sae, l0: {"l0_target": l0},
    timed_beside=(GatedTrainingSAE, GatedTrainingSAEConfig),
)
