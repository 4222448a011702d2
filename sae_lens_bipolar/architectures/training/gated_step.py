"""The training step of gated SAEs on their active latents only, once those are few.

`z` and `pi` have the same support, so one search of `u` serves both reconstructions and the
sparsity term. Early in training, while many gates are open, the step is the dense one; which of the
two runs does not show in the numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.training.gate import Polarities, bi_jump_relu, gate_code
from sae_lens_bipolar.architectures.training.l0_control import MeetsL0Target
from sae_lens_bipolar.architectures.training.on_pairs import StepOnPairs, input_projection
from sae_lens_bipolar.sparse.deferred import DeferredPreactivations, SparseLatents
from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import Projection


class _Gates(DeferredPreactivations):
    """The step's pre-activations, deferred, with `u` at the open gates."""

    support: Support
    u: torch.Tensor


class GatedStep(StepOnPairs, MeetsL0Target):
    """Mixin: `encode`, `decode` and the gate terms of a gated training SAE on open gates only.

        z = BiJumpReLU(u)      xhat = z W_dec + b_dec
        lambda sum_i |pi_i| |W_dec_i| + c |x - (pi W_dec + b_dec)|^2

    Dense equivalent: the methods of the class it is mixed into. A step is that one too while the
    running mean L0 is high, or where activations are normalised token by token; see `StepOnPairs`.
    """

    # What the class below in the MRO says of itself.
    is_two_sided: bool
    aux_weight: float
    polarities: Callable[..., Polarities]
    l1_decoder: Callable[[], torch.Tensor]
    aux_decoder: Callable[[], tuple[torch.Tensor, torch.Tensor]]

    def preactivations(self, projection: Projection) -> tuple[Projection, torch.Tensor | None]:
        """The projection, and its scale `[d_sae]` if any, that the dense step calls hidden_pre."""
        return projection, None

    @override
    def step_density(self) -> float | None:
        if not self.l0_controller.has_seen_data:
            return None
        if self.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            return None
        return self.l0_controller.mean_l0.item() / self.cfg.d_sae

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._step_input is None:
            dense: Any = super()
            return dense.encode_with_hidden_pre(x)
        projection = input_projection(self, x)
        p = self.polarities()
        lower = p.threshold_negative if self.is_two_sided else None
        support, u = sparse.encode_threshold(projection, p.threshold_positive, lower)
        gates: Any = _Gates(*self.preactivations(projection))
        gates.support, gates.u = support, u
        z = bi_jump_relu(u, self.polarities(support.latents), self.is_two_sided)
        return SparseLatents(z, support), gates

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        if not isinstance(hidden_pre, _Gates):
            dense: Any = super()
            return dense.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        support, u = hidden_pre.support, hidden_pre.u
        pi = gate_code(u, self.polarities(support.latents), self.is_two_sided)
        norms = sparse.row_norms(self.l1_decoder())
        weighted = pi.abs() * norms.index_select(0, support.latents)
        coefficient = step_input.coefficients["l1"] / len(step_input.sae_in)
        losses: dict[str, Any] = {"l1_loss": coefficient * weighted.sum()}
        if self.aux_weight:
            W_dec, b_dec = self.aux_decoder()
            error = sparse.decode(support, pi, W_dec) + b_dec - step_input.sae_in
            losses["auxiliary_reconstruction_loss"] = (
                self.aux_weight * error.pow(2).sum(dim=-1).mean()
            )
        return losses
