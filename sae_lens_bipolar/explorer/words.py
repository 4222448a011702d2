"""The token index: which latents fire, and on which side, on each token of the vocabulary."""

from dataclasses import dataclass

import torch

from sae_lens_bipolar.explorer.latents import Firings, State

_PENDING = 1 << 22  # firings held before they are added up


class TokenStatistics:
    """Sums of `|z|` per token, latent and side, over the first `occurrences` of each token.

    Memory is bounded by the vocabulary, not by the text: of an SAE with more than 64 latents
    per token the 64 strongest count.
    """

    def __init__(self, d_vocab: int, d_sae: int, occurrences: int) -> None:
        self.d_sae, self.occurrences = d_sae, occurrences
        self.state: State = {
            "counted": torch.zeros(d_vocab, dtype=torch.int32),  # occurrences counted so far
            "key": torch.zeros(0, dtype=torch.int64),  # (token d_sae + latent) 2 + side
            "n": torch.zeros(0, dtype=torch.int32),  # occurrences on which it fires
            "total": torch.zeros(0, dtype=torch.float64),  # sum of |z| over them
            "pending_key": torch.zeros(0, dtype=torch.int64),
            "pending_size": torch.zeros(0, dtype=torch.float32),
        }
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, tokens: torch.Tensor, keep: torch.Tensor, z: torch.Tensor, all: Firings) -> None:
        """Count a batch: `tokens` and `keep` are `[batch, position]`."""
        counts = self._counts(tokens, keep)
        firings = all.where(counts[all.row, all.position]).bounded(z, int(counts.sum()))
        size = firings.value.abs()
        token = tokens[firings.row, firings.position].long()
        self._pending.append(((token * self.d_sae + firings.latent) * 2 + firings.side, size))
        if sum(len(size) for _, size in self._pending) >= _PENDING:
            self._add_up()

    def _counts(self, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Which positions are among the first occurrences of their token, `[batch, position]`."""
        flat = tokens[keep].long()
        ordered, order = flat.sort(stable=True)
        start = torch.searchsorted(ordered, ordered)
        nth = torch.empty_like(flat)
        nth[order] = torch.arange(len(flat)) - start
        counted = self.state["counted"]
        chosen = counted[flat] + nth < self.occurrences
        counted.index_add_(0, flat, chosen.to(torch.int32))
        found = torch.zeros_like(keep)
        found[keep] = chosen
        return found

    def _add_up(self) -> None:
        if not self._pending:
            return
        keys = torch.cat([self.state["key"], *(key for key, _ in self._pending)])
        sizes = [size.double() for _, size in self._pending]
        ones = torch.ones(sum(map(len, sizes)), dtype=torch.int32)
        key, slot = keys.unique(return_inverse=True)
        totals = torch.cat([self.state["total"], *sizes])
        ns = torch.cat([self.state["n"], ones])
        self.state["key"] = key
        self.state["total"] = torch.zeros(len(key), dtype=torch.float64).index_add_(0, slot, totals)
        self.state["n"] = torch.zeros(len(key), dtype=torch.int32).index_add_(0, slot, ns)
        self._pending = []

    def saved(self) -> State:
        """What `restore` needs; nothing is added up early, so that the sums come out the same."""
        keys = [self.state["pending_key"][:0], *(key for key, _ in self._pending)]
        sizes = [self.state["pending_size"][:0], *(size for _, size in self._pending)]
        return {
            **self.state,
            "pending_key": torch.cat(keys),
            "pending_size": torch.cat(sizes),
        }

    def restore(self, state: State) -> None:
        """Go on from a saved state."""
        self.state = dict(state)
        key, size = state["pending_key"], state["pending_size"]
        self._pending = [(key, size)] if len(key) else []

    def result(self, largest: torch.Tensor, per_token: int) -> "TokenIndex":
        """The strongest entries of each token.

        Args:
            largest: of each side of each latent, `[2, d_sae]`: strengths are shares of it.
            per_token: entries kept per token.
        """
        self._add_up()
        key, n = self.state["key"], self.state["n"]
        token = key // (2 * self.d_sae)
        latent, side = key // 2 % self.d_sae, key % 2
        counted = self.state["counted"]
        strength = self.state["total"] / counted[token] / largest[side, latent].double()
        order = strength.sort(descending=True, stable=True).indices
        order = order[token[order].sort(stable=True).indices]
        nth = torch.arange(len(order)) - torch.searchsorted(token[order], token[order])
        order = order[nth < per_token]
        return TokenIndex(
            counted, token[order], latent[order], side[order], strength[order], n[order]
        )


@dataclass(frozen=True, eq=False)
class TokenIndex:
    """Entries ordered by token, the strongest first; each `[entries]`.

    `strength` is the mean of `|z|` over the counted occurrences of the token (0 where that side
    does not fire), as a share of the side's largest `|z|` in the corpus.
    """

    counted: torch.Tensor  # [d_vocab]: occurrences counted
    token: torch.Tensor
    latent: torch.Tensor
    side: torch.Tensor
    strength: torch.Tensor
    n: torch.Tensor  # of the counted occurrences, those on which it fires
