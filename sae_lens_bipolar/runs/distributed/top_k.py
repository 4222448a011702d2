"""The architectures that keep the k largest, on one rank's latents: exact over all ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE as HostAbsTopK
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, act_times_W_dec
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopK,
    BatchAbsTopKTrainingSAE,
    MatryoshkaBatchAbsTopKTrainingSAE,
)
from sae_lens_bipolar.architectures.bi_topk import BiTopKTrainingSAE, fold_sides
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAE
from sae_lens_bipolar.architectures.training.top_k_step import TopKOnPairs, TopKStep
from sae_lens_bipolar.architectures.unrolled_abstopk import UnrolledAbsTopKTrainingSAE
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from sae_lens_bipolar.runs.distributed.sharded import Sharded, ShardedOnPairs
from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import with_gradient


class Selection(torch.nn.Module):
    """The k entries of each sample (or `int(k batch)` of the batch) that are largest of all ranks.

    Args:
        kind: the one-process activation function, for its k and its kind.
    """

    def __init__(self, ranks: Ranks, kind: Any, by_value: bool):
        super().__init__()
        self.ranks, self.k, self.by_value = ranks, kind.k, by_value
        self.per_batch = isinstance(kind, BatchAbsTopK)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, own]` to a tensor of that shape with zeros outside the selection."""
        scores = x.detach() if self.by_value else x.detach().abs()
        if self.per_batch:
            kept = self.ranks.largest(scores.reshape(1, -1), int(self.k * len(x))).view_as(x)
        else:
            kept = self.ranks.largest(scores, self.k)
        z = torch.where(kept, x, 0.0)
        return z.relu() if self.by_value else z


class ShardedTopK(Sharded, TopKTrainingSAE):
    """Mixin of the architectures that keep the k largest, with an AuxK loss on dead latents."""

    @override
    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return Selection(self.ranks, super().get_activation_fn(), self.ranks_by_value)

    @property
    def ranks_by_value(self) -> bool:
        """Whether the largest are those of value, not of magnitude."""
        return not isinstance(self, HostAbsTopK)

    @override
    def calculate_topk_aux_loss(
        self,
        sae_in: torch.Tensor,
        sae_out: torch.Tensor,
        hidden_pre: torch.Tensor,
        dead_neuron_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """SAELens's loss of that name, of the dead latents of all ranks."""
        every = slice(0, len(self.W_dec))
        loss = self.auxk(sae_in - sae_out, hidden_pre, dead_neuron_mask, every)
        return self.cfg.aux_loss_coefficient * loss

    def calculate_abstopk_aux_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `calculate_topk_aux_loss`, by magnitude."""
        return self.calculate_topk_aux_loss(*args, **kwargs)

    def auxk(
        self,
        residual: torch.Tensor,
        hidden_pre: torch.Tensor,
        dead: torch.Tensor | None,
        level: slice,
    ) -> torch.Tensor:
        """`scale |residual - xhat_aux|^2`, a batch mean, with xhat_aux from the dead latents.

        Args:
            residual: of the reconstruction, `[batch, d_in]`.
            hidden_pre: pre-activations of this rank, `[batch, own]`.
            dead: mask of this rank's dead latents, `[own]`.
            level: those of this rank's latents that count.
        """
        if dead is None:
            return residual.new_zeros(())
        n_dead = int(self.ranks.total(dead[level].sum()))
        if not n_dead:
            return residual.new_zeros(())
        if self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
            raise ConfigError(
                f"normalize_activations={self.cfg.normalize_activations!r} has no auxiliary loss "
                f"for the {n_dead} dead latents; use 'none', 'expected_average_only_in' or "
                "'covariance_whitening'."
            )
        k_aux = residual.shape[-1] // 2
        entries, is_dead = self.candidates(hidden_pre[:, level], dead[level])
        scores = entries.detach() if self.ranks_by_value else entries.detach().abs()
        scores = scores.masked_fill(~is_dead, -torch.inf)
        kept = self.ranks.largest(scores, min(k_aux, n_dead))
        acts = self.latents_of(torch.where(kept, entries, 0.0))
        rescales = self.cfg.rescale_acts_by_decoder_norm
        recons = self.ranks.whole(act_times_W_dec(acts, self.W_dec[level], rescales))
        error = self.reshape_fn_out(recons, self.d_head) - residual.detach()
        return min(n_dead / k_aux, 1.0) * error.pow(2).sum(dim=-1).mean()

    def candidates(
        self, hidden_pre: torch.Tensor, dead: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What AuxK chooses from, `[batch, n]`, and which of the n are dead."""
        return hidden_pre, dead

    def latents_of(self, chosen: torch.Tensor) -> torch.Tensor:
        """Latents, `[batch, own]`, of the chosen candidates."""
        return chosen


class ShardedTopKStep(TopKStep):
    """`TopKStep` on one rank: of the pairs found here those that are among the k of all ranks."""

    sae: Any  # a Sharded TopKOnPairs

    @override
    def count_dead(self) -> int:
        return int(self.sae.ranks.total_of(len(self.dead))[0])

    @override
    def find(self) -> int:
        found = [self._largest(None, self.sae.cfg.k)]
        projection = self.projection
        if self.finds_dead_too:
            found.append(self._largest(self.dead, self.k_dead))
            projection = projection.twice()
        latents, u, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
        offsets = F.pad(counts.cumsum(0), (1, 0))
        self.support = Support(latents, offsets, projection.d_sae)
        self.u = with_gradient(u, self.support, projection)
        return int(offsets[len(self.projection.x)])

    def _largest(
        self, among: torch.Tensor | None, k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents and `u` of this rank's pairs among the k largest, and how many in each sample."""
        sae, p = self.sae, self.projection
        batch, n = len(p.x), p.d_sae if among is None else len(among)
        k_own = min(k, n)
        latents, u = torch.empty(0, dtype=torch.int64, device=p.x.device), p.x.new_empty(0)
        if n:
            [(latents, u)] = sparse.search(p, [(among, k_own)], sae.ranking, self.norm)
        scores = u if self.norm is None else u * self.norm.detach()[latents]
        scores = scores if sae.ranking == "value" else scores.abs()
        kept = sae.ranks.largest(scores.view(batch, k_own), k)
        return latents[kept.flatten()], u[kept.flatten()], kept.sum(1)

    @override
    def decode(self) -> torch.Tensor:
        sums = super().decode()
        if self.recons_of_dead is not None:
            self.recons_of_dead = self.sae.ranks.whole(self.recons_of_dead)
        return sums

    @override
    def losses(
        self, step_input: TrainStepInput, sae_out: torch.Tensor
    ) -> dict[str, torch.Tensor] | None:
        # Where dense products are faster, `ShardedTopK` has them.
        return super().losses(step_input, sae_out) if self.finds_dead_too else None


class ShardedTopKOnPairs(ShardedTopK, ShardedOnPairs, TopKOnPairs):
    """Mixin of those that train on active pairs."""

    @override
    def new_step(self, step_input: TrainStepInput, by_kernel: bool) -> TopKStep:
        return ShardedTopKStep(self, step_input, by_kernel)


class ShardedAbsTopK(ShardedTopKOnPairs, AbsTopKTrainingSAE):
    """`abstopk` on one rank."""


class ShardedSparseTopK(ShardedTopKOnPairs, SparseTopKTrainingSAE):
    """`sparse_topk` on one rank."""


class ShardedBiTopK(ShardedTopK, BiTopKTrainingSAE):  # type: ignore[misc]
    """`bi_topk` on one rank."""

    @override
    def candidates(
        self, hidden_pre: torch.Tensor, dead: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.both_sides(hidden_pre), dead.repeat(2)

    @override
    def latents_of(self, chosen: torch.Tensor) -> torch.Tensor:
        return fold_sides(chosen)


class ShardedUnrolledAbsTopK(ShardedTopK, UnrolledAbsTopKTrainingSAE):  # type: ignore[misc]
    """`unrolled_abstopk` on one rank: every step of its encoder sees the whole reconstruction."""

    @override
    def recons_of(self, z: torch.Tensor) -> torch.Tensor:
        return self.ranks.shared(self.ranks.whole(super().recons_of(z)))


class ShardedBatchAbsTopK(ShardedTopK, BatchAbsTopKTrainingSAE):
    """`batch_abstopk` on one rank."""

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: torch.Tensor) -> None:
        fired = acts_topk[acts_topk != 0].abs()
        least = fired.min() if len(fired) else acts_topk.new_tensor(torch.inf)
        least = self.ranks.total(least, dist.ReduceOp.MIN)
        if least.isfinite():
            super().update_topk_threshold(least.view(1))


class ShardedMatryoshka(ShardedBatchAbsTopK, MatryoshkaBatchAbsTopKTrainingSAE):
    """`matryoshka_batch_abstopk` on one rank: prefixes of all latents, shared out like them."""

    @override
    def _iterable_decode(  # type: ignore[override]
        self, feature_acts: torch.Tensor, include_outer_loss: bool = False
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """SAELens's generator of that name: (width, reconstruction from the prefix) by level."""
        if self.cfg.rescale_acts_by_decoder_norm:
            feature_acts = feature_acts / self.W_dec.norm(dim=-1)
        widths, start = self.cfg.matryoshka_widths, 0
        partial = self.ranks.on_first(self.b_dec)
        for width in widths if include_outer_loss else widths[:-1]:
            own = self.own_between(start, width)
            partial = feature_acts[:, own] @ self.W_dec[own] + partial
            start = width
            yield width, self.run_time_activation_norm_fn_out(self.ranks.whole(partial))

    def own_between(self, start: int, stop: int) -> slice:
        """Which of this rank's latents are those from `start` to `stop` of all."""
        own = self.ranks.own(self.cfg.d_sae)
        first, last = (min(max(i, own.start), own.stop) - own.start for i in (start, stop))
        return slice(first, last)

    @override
    def calculate_matryoshka_aux_loss(
        self,
        sae_in: torch.Tensor,
        sae_out: torch.Tensor,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        dead_neuron_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        loss, start = sae_out.new_zeros(()), 0
        for width, level_out in self._iterable_decode(feature_acts, include_outer_loss=True):
            level = self.own_between(start, width)
            loss = loss + self.auxk(sae_in - level_out, hidden_pre, dead_neuron_mask, level)
            start = width
        return self.cfg.aux_loss_coefficient * loss
