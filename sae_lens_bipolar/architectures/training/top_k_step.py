"""The training step that top-k architectures share: SAELens's own, on sparse latents."""

from typing import Any, cast

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.training.checks import check_fields, require_finite, require_k
from sae_lens_bipolar.architectures.training.on_pairs import StepOnPairs, input_projection
from sae_lens_bipolar.sparse.deferred import DeferredPreactivations, SparseLatents
from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.selection import Ranking, top_k


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
        if self._step_input is None:
            return super().encode_with_hidden_pre(x)
        projection = input_projection(self, x)
        norm = self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
        preactivations = DeferredPreactivations(projection, norm)
        k, dead = self.cfg.k, self._dead_latents(self._step_input)
        k_dead = min(self._k_aux(self._step_input), len(dead))
        if not k_dead or not self._sparse_among_dead(k_dead / len(dead)):
            support, u = sparse.encode_top_k(projection, k, self.ranking, norm)
            return self._latents(support, u, norm), preactivations
        both, u = sparse.encode_top_k_twice(projection, k, dead, k_dead, self.ranking, norm)
        n_samples, n_pairs = x.shape[0], x.shape[0] * k
        support = Support(both.latents[:n_pairs], both.offsets[: n_samples + 1], both.d_sae)
        latents = self._latents(support, u[:n_pairs], norm)
        latents.with_dead = both, u
        return latents, preactivations

    def _latents(
        self, support: Support, u: torch.Tensor, norm: torch.Tensor | None
    ) -> "_TopLatents":
        if not self.keeps_negative:
            u = u.relu()
        latents = u if norm is None else u * norm.index_select(0, support.latents)
        return cast(_TopLatents, _TopLatents(latents, support, u))

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        if not isinstance(feature_acts, _TopLatents) or feature_acts.with_dead is None:
            return super().decode(feature_acts)
        support, u = feature_acts.with_dead
        if not self.keeps_negative:
            alive = feature_acts.coefficients
            u = torch.cat([alive, u[len(alive) :]])
        sums = sparse.decode(support, u, self.W_dec)
        recons, feature_acts.dead_recons = sums.chunk(2)
        return self._output(recons)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """SAELens's AuxK loss, computed from the dead latents alone.

        `aux_loss_coefficient * scale * mean_b |residual - xhat_aux|^2`, with `xhat_aux` from the
        k_aux = d_in / 2 dead latents ranked first (arXiv 2406.04093, appendix A.2 and B.1).
        """
        dead = self._dead_latents(step_input)
        if (
            not isinstance(feature_acts, _TopLatents)
            or not isinstance(hidden_pre, DeferredPreactivations)
            or not len(dead)
        ):
            return super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        residual = (step_input.sae_in - sae_out).detach()
        k_aux = self._k_aux(step_input)
        recons = feature_acts.dead_recons
        if recons is None:
            recons = self._decode_dead_densely(hidden_pre, dead, min(k_aux, len(dead)))
        scale = min(len(dead) / k_aux, 1.0)
        loss = (self.reshape_fn_out(recons, self.d_head) - residual).pow(2).sum(dim=-1).mean()
        return {"auxiliary_reconstruction_loss": self.cfg.aux_loss_coefficient * scale * loss}

    def _dead_latents(self, step_input: TrainStepInput) -> torch.Tensor:
        """Indices of the dead latents, none where there is no AuxK loss or SAELens refuses it."""
        dead = step_input.dead_neuron_mask
        if dead is None or self.cfg.normalize_activations in (
            "constant_norm_rescale",
            "layer_norm",
        ):
            return torch.empty(0, dtype=torch.int64)
        return dead.nonzero().squeeze(1)

    def _sparse_among_dead(self, density: float) -> bool:
        # The dead latents' own product is spared, so it pays up to a larger density.
        return sparse.prefer_sparse(density / 1.5, self.W_dec.device, self.W_dec.dtype)

    def _k_aux(self, step_input: TrainStepInput) -> int:
        return step_input.sae_in.shape[-1] // 2

    def _decode_dead_densely(
        self, hidden_pre: DeferredPreactivations, dead: torch.Tensor, k: int
    ) -> torch.Tensor:
        """`[batch, d_in]` from the k dead latents of each sample that rank first, signed."""
        u = hidden_pre.projection.columns(dead).dense()
        if k < len(dead):
            norm = hidden_pre.scale
            ranked = u.detach() if norm is None else u.detach() * norm.detach()[dead]
            kept = torch.zeros_like(u, dtype=torch.bool)
            u = u * kept.scatter_(1, top_k(ranked, k, self.ranking)[1], True)
        return u @ self.W_dec.index_select(0, dead)


class _TopLatents(SparseLatents):
    """Latents of a step and, where dead ones are few a sample, what the AuxK loss needs of those.

    Args:
        with_dead: the support and `u` of the latents, then of the dead ones; see
            `sparse.encode_top_k_twice`. `decode` turns both into reconstructions at once.
        dead_recons: `xhat_aux`, `[batch, d_in]`, from `decode`.
    """

    with_dead: tuple[Support, torch.Tensor] | None = None
    dead_recons: torch.Tensor | None = None
