"""The architectures with thresholds, on one rank's latents: penalties and L0 over all ranks."""

import torch
from sae_lens.saes.jumprelu_sae import Step
from sae_lens.saes.sae import TrainStepInput
from typing_extensions import override

from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUTrainingSAE
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAE
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAE
from sae_lens_bipolar.architectures.training.gated_step import DenseGated, GatedOnPairs
from sae_lens_bipolar.architectures.training.l0_control import MeetsL0Target
from sae_lens_bipolar.runs.distributed.sharded import Sharded, ShardedOnPairs


class ShardedWithTarget(Sharded, MeetsL0Target):
    """Mixin of SAEs with an L0 controller, which is told the L0 of all ranks."""

    @override
    def observe(self, latents: torch.Tensor) -> None:
        own = latents.bool().float().sum(-1).mean()
        self.l0_controller.take_in(self.ranks.total(own))


class ShardedGated(ShardedWithTarget, ShardedOnPairs, GatedOnPairs):
    """Mixin of the gated SAEs: the sparsity term and the auxiliary reconstruction are sums."""

    @override
    def aux_decoder(self) -> tuple[torch.Tensor, torch.Tensor]:
        W_dec, b_dec = super().aux_decoder()
        return W_dec, self.ranks.on_first(b_dec)

    @override
    def aux_loss(self, recons: torch.Tensor, sae_in: torch.Tensor) -> torch.Tensor:
        return super().aux_loss(self.ranks.whole(recons), sae_in)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        losses = self.own_losses(step_input, feature_acts, hidden_pre, sae_out)
        return {**losses, "l1_loss": self.ranks.whole(losses["l1_loss"])}

    def own_losses(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The losses beside the squared error, with the sparsity term of this rank alone."""
        return super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)


class ShardedSignAwareGated(ShardedGated, SignAwareGatedTrainingSAE):  # type: ignore[misc]
    """`sign_aware_gated` on one rank."""


class ShardedGatedL0(ShardedGated, GatedL0TrainingSAE):
    """`gated_l0` on one rank."""

    @override
    def own_losses(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        if self._step is not None and self._step.made(feature_acts):
            return super().own_losses(step_input, feature_acts, hidden_pre, sae_out)
        # SAELens's dense step adds up its auxiliary reconstruction in one expression.
        u = self.process_sae_in(step_input.sae_in) @ self.W_enc
        return DenseGated.calculate_aux_loss(self, step_input, feature_acts, u, sae_out)  # type: ignore[arg-type]


class ShardedBiJumpReLU(ShardedWithTarget, BiJumpReLUTrainingSAE):  # type: ignore[misc]
    """`bi_jumprelu` on one rank."""

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        if self.cfg.jumprelu_sparsity_loss_mode == "quadratic":  # the square of a sum
            l0 = self.ranks.whole(sum(self._both_sides(Step, hidden_pre)).sum(dim=-1))  # type: ignore[arg-type]
            target = self.cfg.target_l0
            assert target is not None  # the configuration has checked it
            penalty = 2 / target * (l0 - target) ** 2
            return {
                name: (step_input.coefficients["l0"] * penalty).mean()
                if name == "l0_loss"
                else self.ranks.whole(loss)
                for name, loss in losses.items()
            }
        return {name: self.ranks.whole(loss) for name, loss in losses.items()}
