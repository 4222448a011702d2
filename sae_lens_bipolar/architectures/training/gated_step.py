"""The training step of gated SAEs: on whole matrices, and on open gates only once those are few.

With `u` and the polarities of each latent (see `gate`):

    z = BiJumpReLU(u)       xhat = z W_dec + b_dec
    L = |x - xhat|^2 + lambda sum_i |pi_i| |W_dec_i| + c |x - (pi W_dec + b_dec)|^2

`z` and `pi` have the same support, so one search of `u` serves both reconstructions and the
sparsity term. Early in training, while many gates are open, the step is the dense one; both give
the same numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.training.gate import Polarities, bi_jump_relu, gate_code
from sae_lens_bipolar.architectures.training.l0_control import MeetsL0Target
from sae_lens_bipolar.architectures.training.on_pairs import (
    StepOnPairs,
    TrainsOnPairs,
    input_projection,
)
from sae_lens_bipolar.sparse.deferred import DeferredPreactivations, SparseLatents
from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import Projection


class Gated(TrainingSAE[Any]):
    """What the step, dense or on open gates, needs to know of a gated training SAE."""

    is_two_sided: bool
    aux_weight: float  # c
    # Of all latents, `[d_sae]` each, or gathered at the indices `latents`.
    polarities: Callable[..., Polarities]
    # No gradient of the auxiliary term at W_dec and b_dec.
    detaches_aux_decoder: bool = False
    # No gradient of the sparsity term at the norms of W_dec. The Gated SAE's paper holds the
    # decoder at unit norm, SAELens does not; once the auxiliary term no longer counteracts it, the
    # sparsity term shrinks the decoder without end (R^2 0.59 and falling after 200 steps of 512 on
    # SmolLM2 layer 12 with d_sae 1152 and an L0 target of 32, against 0.74; one seed).
    detaches_l1_decoder: bool = False

    def l1_decoder(self) -> torch.Tensor:
        """`W_dec` as the sparsity term uses it, through the norms of its rows."""
        return self.W_dec.detach() if self.detaches_l1_decoder else self.W_dec

    def aux_decoder(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`W_dec` and `b_dec` as the auxiliary reconstruction uses them."""
        if self.detaches_aux_decoder:
            return self.W_dec.detach(), self.b_dec.detach()
        return self.W_dec, self.b_dec

    def aux_loss(self, recons: torch.Tensor, sae_in: torch.Tensor) -> torch.Tensor:
        """`c |x - recons|^2`, a batch mean, of `recons = pi W_dec + b_dec`, `[..., d_in]`.

        Like the squared error of `z`, it is taken where `x`, `sae_in`, lives: before SAELens
        flattens the heads of `hook_z` and normalises.
        """
        # decode() has used up the per-token norms of layer_norm and constant_norm_rescale.
        self.run_time_activation_norm_fn_in(self.reshape_fn_in(sae_in))
        recons = self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)
        return self.aux_weight * (recons - sae_in).pow(2).sum(dim=-1).mean()


class DenseGated(Gated):
    """The step on whole `[batch, d_sae]` matrices, for SAEs that do not have one of SAELens's."""

    project: Callable[[torch.Tensor], torch.Tensor]  # `u`, `[..., d_sae]`, from `[..., d_in]`

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `z` and projections `u`, `[batch, d_sae]` each."""
        u = self.project(x)
        z = bi_jump_relu(u, self.polarities(), self.is_two_sided)
        return self.hook_sae_acts_post(z), u

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The sparsity and the auxiliary term of the module's docstring, as batch means."""
        pi = gate_code(hidden_pre, self.polarities(), self.is_two_sided)
        weighted = pi.abs() @ self.l1_decoder().norm(dim=1)
        losses = {"l1_loss": step_input.coefficients["l1"] * weighted.mean()}
        if self.aux_weight:
            W_dec, b_dec = self.aux_decoder()
            recons = pi @ W_dec + b_dec
            losses["auxiliary_reconstruction_loss"] = self.aux_loss(recons, step_input.sae_in)
        return losses


class GatedOnPairs(TrainsOnPairs, MeetsL0Target, Gated):
    """Mixin for a gated training SAE: the same step, loss and gradients, on open gates only.

    A step is the dense one while the running mean L0 is high, or where activations are normalised
    token by token; see `TrainsOnPairs` for the other reasons.
    """

    def preactivations(self, projection: Projection) -> tuple[Projection, torch.Tensor | None]:
        """The projection, and its scale `[d_sae]` if any, that the dense step calls hidden_pre."""
        return projection, None

    @override
    def step_density(self) -> float | None:
        numbers = self.l0_controller.numbers()
        if not numbers.has_seen_data:
            return None
        if self.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            return None
        return numbers.mean_l0 / self.cfg.d_sae

    @override
    def new_step(self, step_input: TrainStepInput, by_kernel: bool) -> "GatedStep":
        return GatedStep(self, step_input, by_kernel)


class GatedStep(StepOnPairs[GatedOnPairs]):
    """One step on the open gates. Dense equivalent: `DenseGated`."""

    support: Support
    u: torch.Tensor  # at the open gates, `[n_pairs]`
    polarities: Polarities  # at the open gates, `[n_pairs]` each

    @override
    def encode(self, x: torch.Tensor) -> None:
        sae = self.sae
        projection, p = input_projection(sae, x, self.by_kernel), sae.polarities()
        lower = p.threshold_negative if sae.is_two_sided else None
        self.support, self.u = sparse.encode_threshold(projection, p.threshold_positive, lower)
        self.polarities = sae.polarities(self.support.latents)
        z = bi_jump_relu(self.u, self.polarities, sae.is_two_sided)
        self.latents = SparseLatents(z, self.support)
        self.hidden_pre = DeferredPreactivations(*sae.preactivations(projection))

    @override
    def decode(self) -> torch.Tensor:
        return sparse.decode(self.support, self.latents.values_of_pairs, self.sae.W_dec)

    @override
    def losses(self, step_input: TrainStepInput, sae_out: torch.Tensor) -> dict[str, torch.Tensor]:
        sae, support = self.sae, self.support
        pi = gate_code(self.u, self.polarities, sae.is_two_sided)
        norms = sparse.row_norms(sae.l1_decoder())
        weighted = pi.abs() * norms.index_select(0, support.latents)
        coefficient = step_input.coefficients["l1"] / len(step_input.sae_in)
        losses = {"l1_loss": coefficient * weighted.sum()}
        if sae.aux_weight:
            W_dec, b_dec = sae.aux_decoder()
            recons = sparse.decode(support, pi, W_dec) + b_dec
            losses["auxiliary_reconstruction_loss"] = sae.aux_loss(recons, step_input.sae_in)
        return losses
