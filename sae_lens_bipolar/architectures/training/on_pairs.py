"""A training step on active (sample, latent) pairs: what top-k and gated SAEs share of it.

SAELens's `training_forward_pass` calls `encode_with_hidden_pre`, `decode` and
`calculate_aux_loss`. Only these are replaced, and only within a step that qualifies; everywhere
else the SAE is the dense one.
"""

from typing import Any

import torch
from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput, TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.sparse import fused_adam
from sae_lens_bipolar.sparse.deferred import SparseLatents
from sae_lens_bipolar.sparse.projection import Projection


class StepOnPairs(TrainingSAE[Any]):
    """Mixin that runs the class below it on pairs where that is faster and nothing forbids it.

    A step stays dense where hooks sit on pre- or post-activations, the input is not
    `[batch, d_in]`, the density is one at which dense products are faster, or under
    `sparse.mode("dense")`.
    """

    # The input of the step that runs on pairs, while it runs.
    _step_input: TrainStepInput | None = None

    def step_density(self) -> float | None:
        """Share of the latents a step keeps active, or None where the step must be dense."""
        raise NotImplementedError

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if not self._qualifies(step_input.sae_in):
            return super().training_forward_pass(step_input)
        return self._step_on_pairs(step_input)

    # A compiler has nothing to fuse here, and cannot trace through tensor subclasses.
    @torch.compiler.disable()
    def _step_on_pairs(self, step_input: TrainStepInput) -> TrainStepOutput:
        fused_adam.ask_for(self.W_dec)
        self._step_input = step_input
        try:
            return super().training_forward_pass(step_input)
        finally:
            self._step_input = None

    def _qualifies(self, sae_in: torch.Tensor) -> bool:
        density = self.step_density()
        return (
            density is not None
            and sparse.prefer_sparse(density, self.W_dec.device, self.W_dec.dtype)
            and sae_in.ndim == (3 if self.hook_z_reshaping_mode else 2)
            and not has_hooks(self.hook_sae_acts_pre)
            and not has_hooks(self.hook_sae_acts_post)
        )

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """`z W_dec + b_dec`, `[batch, d_in]`; from their pairs for the latents of such a step."""
        if not isinstance(feature_acts, SparseLatents):
            return super().decode(feature_acts)
        return self._output(
            sparse.decode(feature_acts.support, feature_acts.coefficients, self.W_dec)
        )

    def _output(self, sums: torch.Tensor) -> torch.Tensor:
        """The SAE's output for `z W_dec`, `[batch, d_in]`."""
        recons = self.hook_sae_recons(sums + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)


def input_projection(sae: SAE[Any], x: torch.Tensor) -> Projection:
    """`u = process_sae_in(x) @ W_enc + b_enc` of an SAE (without `b_enc` where it has none).

    Args:
        sae: the SAE.
        x: activations, `[batch, d_in]`.
    """
    sae_in, shift = sae.process_sae_in(x), None
    if not x.requires_grad and not has_hooks(sae.hook_sae_input):
        # Then b_dec is all that needs a gradient through the input, and it comes cheaper.
        sae_in = sae_in.detach()
        shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else None
    b_enc = getattr(sae, "b_enc", None)
    return Projection(sae_in, sae.W_enc, b_enc, shift)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is hooked to a module, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
