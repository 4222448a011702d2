"""The ranks of a run: which latents each holds, and the sums and choices they make together."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from sae_lens_bipolar.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Ranks:
    """One process among `size`, which train the same SAEs, each with latents of its own.

    The convention of every method that takes part in gradients: a loss is computed alike on all
    ranks from whole tensors, and the gradient of what all ranks hold is the sum of their shares.
    """

    rank: int
    size: int
    mesh: DeviceMesh
    traffic: Counter[str] = field(default_factory=Counter)  # bytes a rank gave, by collective

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def own(self, d_sae: int) -> slice:
        """The latents of this rank, as torch shards them: `ceil(d_sae / size)`, the last fewer."""
        width = self.width(d_sae)
        return slice(min(self.rank * width, d_sae), min((self.rank + 1) * width, d_sae))

    def width(self, d_sae: int) -> int:
        """Latents of the first rank, which has the most."""
        return -(-d_sae // self.size)

    def require_latents(self, d_sae: int) -> None:
        """Raise `ConfigError` if some rank would hold no latent."""
        if self.width(d_sae) * (self.size - 1) >= d_sae:
            raise ConfigError(
                f"d_sae={d_sae} is not allowed on {self.size} ranks: with "
                f"{self.width(d_sae)} latents per rank the last would hold none; start fewer ranks"
            )

    def whole(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, of which each gets the whole gradient of its own summand."""
        return _Whole.apply(partial, self)  # type: ignore[no-any-return]

    def shared(self, same: torch.Tensor) -> torch.Tensor:
        """A tensor that all ranks hold; its gradient is the sum of those of the ranks."""
        return _Shared.apply(same, self)  # type: ignore[no-any-return]

    def on_first(self, same: torch.Tensor) -> torch.Tensor:
        """`same` on the first rank, zeros on the others: a summand that counts once."""
        return same * float(self.is_first)

    @torch.no_grad()
    def total(self, found: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Any:
        """The sum (or what `op` says) over the ranks, without a gradient."""
        result = found.detach().clone().contiguous()
        self.traffic["all_reduce"] += result.nbytes
        dist.all_reduce(result, op)
        return result

    def total_of(self, *numbers: float) -> list[float]:
        """The sums over the ranks of numbers."""
        own = torch.tensor(numbers, dtype=torch.float64, device=self.mesh.device_type)
        return self.total(own).tolist()

    @torch.no_grad()
    def gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, which have one shape."""
        part = part.detach().contiguous()
        self.traffic["all_gather"] += part.nbytes
        found = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(found, part)
        return found

    @torch.no_grad()
    def gather_uneven(self, part: torch.Tensor, dim: int, total: int) -> torch.Tensor:
        """The whole tensor, whose dimension `dim` of length `total` is shared out as latents are.

        Args:
            part: this rank's part of it.
        """
        missing = self.width(total) - part.shape[dim]
        if missing:
            shape = list(part.shape)
            shape[dim] = missing
            part = torch.cat([part, part.new_zeros(shape)], dim)
        return torch.cat(self.gather(part), dim).narrow(dim, 0, total).contiguous()

    @torch.no_grad()
    def largest(self, scores: torch.Tensor, k: int) -> torch.Tensor:
        """Which of this rank's scores are among the k largest of all ranks, in each row.

        Args:
            scores: `[rows, n]`, n as each rank has it; -inf is never among the k as long as all
                ranks together have k others.

        Returns:
            A mask like `scores`, true k times in a row over all ranks. Each rank gives the others
            `rows * k` values, whatever n is.
        """
        k_own = min(k, scores.shape[1])
        best, where = scores.topk(k_own, sorted=False)
        if k_own < k:
            best = torch.cat([best, best.new_full((len(best), k - k_own), -torch.inf)], 1)
        # The candidates are the same tensor on every rank, and so is what is chosen of them.
        candidates = torch.cat(self.gather(best), 1)
        chosen = candidates.topk(k, sorted=False).indices
        is_chosen = torch.zeros_like(candidates, dtype=torch.bool).scatter_(1, chosen, True)
        own = is_chosen[:, self.rank * k : self.rank * k + k_own]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, where, own)

    def distributed(self, whole: torch.Tensor, dim: int | None) -> DTensor:
        """A tensor that every rank holds whole as a DTensor, sharded along `dim`, or replicated."""
        if dim is None:
            return DTensor.from_local(whole, self.mesh, [Replicate()], run_check=False)
        part = self.part(whole, dim)
        spec = {"shape": whole.shape, "stride": whole.stride()}
        return DTensor.from_local(part, self.mesh, [Shard(dim)], run_check=False, **spec)

    def part(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of a tensor whose dimension `dim` is the latents; a copy."""
        own = self.own(whole.shape[dim])
        return whole.narrow(dim, own.start, own.stop - own.start).clone(
            memory_format=torch.contiguous_format
        )


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        return ranks.total(partial)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad_outputs[0], None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, same: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return same.view_as(same)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return ctx.ranks.total(grad_outputs[0]), None
