"""The training step that top-k architectures share: SAELens's own, on active pairs only.

With n the decoder's row norms, or 1 without `rescale_acts_by_decoder_norm`:

    u = (x - b_dec) W_enc + b_enc      z_i = n_i u_i for the k largest |n u| (or n u), else 0
    xhat = z (W_dec / n) + b_dec = sum over the k of u_i W_dec_i + b_dec

n cancels from the reconstruction, and so from its gradient: it decides only what is kept.
"""

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.training.checks import check_fields, require_k
from sae_lens_bipolar.architectures.training.early_copy import EarlyCopy
from sae_lens_bipolar.architectures.training.on_pairs import (
    StepOnPairs,
    TrainsOnPairs,
    input_projection,
)
from sae_lens_bipolar.sparse.deferred import DeferredPreactivations, SparseLatents
from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.selection import Ranking, top_k


class TopKOnPairs(TrainsOnPairs, TopKTrainingSAE):
    """Mixin for a `TopKTrainingSAE`: the same step, loss and gradients, on active pairs only.

    See `TrainsOnPairs` for when a step is SAELens's dense one.

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
    def step_density(self) -> float:
        return self.cfg.k / self.cfg.d_sae

    @override
    def new_step(self, step_input: TrainStepInput, by_kernel: bool) -> "TopKStep":
        return TopKStep(self, step_input, by_kernel)


class TopKStep(StepOnPairs[TopKOnPairs]):
    """One step: the k latents of each sample and, if few of the dead ones are used, those too.

    If `k_dead` latents are few among the dead ones, the pairs of the AuxK loss are found and
    decoded together with the others, as samples `[batch:]` of `support`.
    """

    support: Support  # of the k latents per sample, then of the dead ones per sample
    u: torch.Tensor  # at those pairs; decoding weighs the rows of `W_dec` with it
    recons_of_dead: torch.Tensor | None = None  # `xhat_aux`, `[batch, d_in]`
    counted: EarlyCopy | None = None  # how many latents are dead, where kernels run

    def __init__(self, sae: TopKOnPairs, step_input: TrainStepInput, by_kernel: bool = False):
        super().__init__(sae, step_input, by_kernel)
        self.k_aux = step_input.sae_in.shape[-1] // 2
        self.is_dead = _mask_of_dead(sae, step_input)
        self.finds_dead_too = False
        if by_kernel:
            # A GPU would wait if they were counted before the search is queued, and dense products
            # over them are faster there.
            self.counted = None if self.is_dead is None else EarlyCopy(self.is_dead.sum())
        else:
            self.find_dead()
            # It saves a product for the dead latents alone, so it pays up to a larger density.
            self.finds_dead_too = self.k_dead > 0 and sparse.prefer_sparse(
                self.k_dead / self.n_dead / 1.5, sae.W_dec.device, sae.W_dec.dtype
            )

    def find_dead(self) -> None:
        """Set `dead`, their indices, `n_dead`, and `k_dead`, how many the AuxK loss takes."""
        if self.is_dead is None:
            self.dead = torch.empty(0, dtype=torch.int64)
        elif self.counted is None:
            self.dead = self.is_dead.nonzero().squeeze(1)
        else:  # as many as there are, without a look at the device
            self.dead = torch.empty(0, dtype=torch.int64)
            if n_dead := int(self.counted.read()[0]):
                in_order = self.is_dead.byte().sort(descending=True, stable=True)
                self.dead = in_order.indices[:n_dead]
        self.n_dead = self.count_dead()
        self.k_dead = min(self.k_aux, self.n_dead)

    def count_dead(self) -> int:
        """How many latents of the SAE are dead."""
        return len(self.dead)

    def find(self) -> int:
        """Set `support` and `u`; returns how many pairs are those of the k latents per sample."""
        sae, k = self.sae, self.sae.cfg.k
        search = self.projection, k
        if self.finds_dead_too:
            self.support, self.u = sparse.encode_top_k_twice(
                *search, self.dead, self.k_dead, sae.ranking, self.norm
            )
        else:
            self.support, self.u = sparse.encode_top_k(*search, sae.ranking, self.norm)
        return self.projection.x.shape[0] * k

    @override
    def encode(self, x: torch.Tensor) -> None:
        sae = self.sae
        self.projection = input_projection(sae, x, self.by_kernel)
        self.norm = sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else None
        n_pairs = self.find()
        if not sae.keeps_negative:  # except those of dead latents, as in SAELens
            self.u = torch.cat([self.u[:n_pairs].relu(), self.u[n_pairs:]])
        support, u = self.support, self.u[:n_pairs]
        if self.finds_dead_too:
            offsets = support.offsets[: x.shape[0] + 1]
            support = Support(support.latents[:n_pairs], offsets, support.d_sae, support.reading)
        z = u if self.norm is None else u * self.norm.index_select(0, support.latents)
        self.latents = SparseLatents(z, support)
        self.hidden_pre = DeferredPreactivations(self.projection, self.norm)

    @override
    def decode(self) -> torch.Tensor:
        sums = sparse.decode(self.support, self.u, self.sae.W_dec)
        if self.finds_dead_too:
            sums, self.recons_of_dead = sums.chunk(2)
        return sums

    @override
    def losses(
        self, step_input: TrainStepInput, sae_out: torch.Tensor
    ) -> dict[str, torch.Tensor] | None:
        """SAELens's AuxK loss, computed from the dead latents alone.

        `aux_loss_coefficient * scale * mean_b |residual - xhat_aux|^2`, with `xhat_aux` from the
        k_aux = d_in / 2 dead latents ranked first (arXiv 2406.04093, appendix A.2 and B.1).
        """
        if self.by_kernel:
            self.find_dead()
        if not self.n_dead:
            if self.is_dead is None:
                return None  # SAELens's own gives 0, or says why there can be none
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        sae = self.sae
        recons = self._decode_dead() if self.recons_of_dead is None else self.recons_of_dead
        residual = (step_input.sae_in - sae_out).detach()
        loss = (sae.reshape_fn_out(recons, sae.d_head) - residual).pow(2).sum(dim=-1).mean()
        scale = min(self.n_dead / self.k_aux, 1.0)
        return {"auxiliary_reconstruction_loss": sae.cfg.aux_loss_coefficient * scale * loss}

    def _decode_dead(self) -> torch.Tensor:
        """`xhat_aux`, `[batch, d_in]`, by dense products, for when those are faster."""
        u = self.projection.columns(self.dead).dense()
        if self.k_dead < len(self.dead):
            ranked = u.detach()
            if self.norm is not None:
                ranked = ranked * self.norm.detach()[self.dead]
            kept = torch.zeros_like(u, dtype=torch.bool)
            u = u * kept.scatter_(1, top_k(ranked, self.k_dead, self.sae.ranking)[1], True)
        return u @ self.sae.W_dec.index_select(0, self.dead)


def _mask_of_dead(sae: TopKOnPairs, step_input: TrainStepInput) -> torch.Tensor | None:
    """Which latents are dead, `[d_sae]`; None if SAELens has or allows no AuxK loss."""
    if sae.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
        return None
    return step_input.dead_neuron_mask
