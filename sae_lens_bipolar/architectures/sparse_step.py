"""The training step that top-k architectures share: SAELens's own, on sparse latents."""

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.checks import check_fields, require_finite, require_k
from sae_lens_bipolar.architectures.step_on_pairs import StepOnPairs, input_projection
from sae_lens_bipolar.selection import Ranking, top_k
from sae_lens_bipolar.sparse_latents import DeferredPreactivations, SparseLatents


class SparseStep(StepOnPairs, TopKTrainingSAE):
    """Mixin for a `TopKTrainingSAE`: the same step, loss and gradients, on active pairs only.

    With n the decoder's row norms, or 1 without `rescale_acts_by_decoder_norm`:

        u = (x - b_dec) W_enc + b_enc      z_i = n_i u_i for the k largest |n u|, else 0
        xhat = z (W_dec / n) + b_dec = sum over the k of u_i W_dec_i + b_dec

    n cancels from the reconstruction, and so from its gradient: it decides only what is kept.

    See `StepOnPairs` for when a step is SAELens's dense one.

    Raises:
        ConfigError: unless `1 <= k <= d_sae` and every field has its type.
        ActivationError: for activations that are not finite.
    """

    ranking: Ranking = "value"
    keeps_negative: bool = False

    def __init__(self, cfg: Any, use_error_term: bool = False):
        check_fields(cfg)  # SAELens's own configuration classes check little
        require_k(cfg.k, cfg.d_sae)
        super().__init__(cfg, use_error_term)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        require_finite(step_input.sae_in, self.cfg.metadata.hook_name, step_input.n_training_steps)
        return super().training_forward_pass(step_input)

    @override
    def step_density(self) -> float:
        return self.cfg.k / self.cfg.d_sae

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """SAELens's, or inside a qualifying step the same two tensors, deferred."""
        if not self._on_pairs:
            return super().encode_with_hidden_pre(x)
        projection = input_projection(self, x)
        norm = self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
        support, u = sparse.encode_top_k(projection, self.cfg.k, self.ranking, norm)
        if not self.keeps_negative:
            u = u.relu()
        latents = u if norm is None else u * norm.index_select(0, support.latents)
        return SparseLatents(latents, support, u), DeferredPreactivations(projection, norm)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """SAELens's AuxK loss, computed from the dead latents' columns alone.

        `aux_loss_coefficient * scale * mean_b |residual - xhat_aux|^2`, with `xhat_aux` from the
        k_aux = d_in / 2 dead latents ranked first (arXiv 2406.04093, appendix A.2 and B.1).
        """
        dead = step_input.dead_neuron_mask
        if (
            not isinstance(hidden_pre, DeferredPreactivations)
            or dead is None
            or not (num_dead := int(dead.sum()))
            # SAELens refuses these two, with a message of its own.
            or self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm")
        ):
            return super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        residual = (step_input.sae_in - sae_out).detach()
        k_aux = step_input.sae_in.shape[-1] // 2
        scale = min(num_dead / k_aux, 1.0)
        recons = self._decode_dead(hidden_pre, dead, min(k_aux, num_dead))
        loss = (self.reshape_fn_out(recons, self.d_head) - residual).pow(2).sum(dim=-1).mean()
        return {"auxiliary_reconstruction_loss": self.cfg.aux_loss_coefficient * scale * loss}

    def _decode_dead(
        self, hidden_pre: DeferredPreactivations, dead: torch.Tensor, k: int
    ) -> torch.Tensor:
        """`[batch, d_in]` from the k dead latents of each sample that rank first, signed."""
        latents = dead.nonzero().squeeze(1)
        projection = hidden_pre.projection.columns(latents)
        W_dec = self.W_dec.index_select(0, latents)
        norm = None if hidden_pre.scale is None else hidden_pre.scale.detach()[latents]
        if sparse.prefer_sparse(k / projection.d_sae, W_dec.device, W_dec.dtype):
            support, u = sparse.encode_top_k(projection, k, self.ranking, norm)
            return sparse.decode(support, u, W_dec)
        u = projection.dense()
        if k < projection.d_sae:
            ranked = u.detach() if norm is None else u.detach() * norm
            kept = torch.zeros_like(u, dtype=torch.bool)
            u = u * kept.scatter_(1, top_k(ranked, k, self.ranking)[1], True)
        return u @ W_dec
