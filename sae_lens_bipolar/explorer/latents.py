"""Running statistics of every latent and side, from the firings of one batch after another.

Nothing grows with the text: counts, sums, a histogram and the strongest contexts are kept per side
of each latent. Side 0 is positive, side 1 negative.
"""

from dataclasses import dataclass
from typing import Any

import torch

from sae_lens_bipolar.explorer.config import BINS

_BINS_LOG2 = BINS.bit_length() - 1
_NEVER = -1_000  # exponent of a latent that has not fired
STRONGEST = 64  # latents per token that are kept where firings are; denser SAEs are cut to these
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Firings:
    """The nonzero latents of a batch, in the order of sequence, position and latent; each `[n]`."""

    row: torch.Tensor  # sequence within the batch
    position: torch.Tensor
    latent: torch.Tensor
    value: torch.Tensor  # float32

    @classmethod
    def of(cls, z: torch.Tensor) -> "Firings":
        """Those of latents `[batch, position, d_sae]`."""
        row, position, latent = z.nonzero(as_tuple=True)
        return cls(row, position, latent, z[row, position, latent])

    def where(self, keep: torch.Tensor) -> "Firings":
        """Those that a mask `[n]` keeps."""
        return Firings(self.row[keep], self.position[keep], self.latent[keep], self.value[keep])

    def bounded(self, z: torch.Tensor, tokens: int) -> "Firings":
        """All of them if `tokens` have no more than `STRONGEST` each on average, or those of each.

        Args:
            z: `[batch, position, d_sae]`, which they were taken from.
            tokens: how many of its tokens they fall on.
        """
        if len(self.value) <= STRONGEST * tokens:
            return self
        least = z.abs().topk(min(STRONGEST, z.shape[-1]), dim=-1).values[..., -1]
        return self.where(self.value.abs() >= least[self.row, self.position])

    @property
    def side(self) -> torch.Tensor:
        """0 where `z > 0`, 1 where `z < 0`."""
        return (self.value < 0).long()


class LatentStatistics:
    """Counts, means, maxima, histograms and strongest contexts of all latents of one SAE.

    Histogram bin `b` of a side counts `b w <= |z| < (b + 1) w`, with `w = 2^exponent` the least
    power of 2 for which `BINS` bins hold every value. Where a larger value comes, bins are merged
    in pairs, so the counts are those of one pass that had known the width.

    Contexts are ordered by `|z|` at the peak, ties by sequence; one from a sequence, its first
    position with that value.
    """

    def __init__(self, d_sae: int, contexts: int, radius: int) -> None:
        self.d_sae, self.n, self.radius = d_sae, contexts, radius
        width = 2 * radius + 1
        self.state: State = {
            "count": torch.zeros(2, d_sae, dtype=torch.int64),
            "total": torch.zeros(2, d_sae, dtype=torch.float64),
            "largest": torch.zeros(2, d_sae),
            "exponent": torch.full((d_sae,), _NEVER, dtype=torch.int32),
            "histogram": torch.zeros(d_sae, 2, BINS, dtype=torch.int32),
            "peak": torch.zeros(2, d_sae, contexts),  # |z|, 0 where there is no context
            "place": torch.zeros(2, d_sae, contexts, 2, dtype=torch.int32),  # sequence, position
            "window": torch.zeros(2, d_sae, contexts, width),  # z around the peak
        }

    def __getattr__(self, name: str) -> torch.Tensor:
        state: Any = self.__dict__.get("state", {})
        if name not in state:
            raise AttributeError(name)
        return state[name]

    @property
    def fires(self) -> torch.Tensor:
        """Which latents have fired on either side, `[d_sae]` bool."""
        return self.count.sum(0) > 0

    def add(self, z: torch.Tensor, firings: Firings, first_row: int) -> None:
        """Count a batch.

        Args:
            z: `[batch, position, d_sae]`, 0 at what does not count.
            firings: those of `z`.
            first_row: sequence of the corpus that the batch begins with.
        """
        if not len(firings.value):
            return
        flat = firings.side * self.d_sae + firings.latent
        size = firings.value.abs()
        self.count.view(-1).index_add_(0, flat, torch.ones_like(flat))
        self.total.view(-1).index_add_(0, flat, size.double())
        self.largest.view(-1).scatter_reduce_(0, flat, size, "amax")
        self._count_bins(firings, size)
        for side in (0, 1):
            chosen = firings.where(firings.side == side)
            if len(chosen.value):
                self._keep_strongest(side, z, chosen, first_row)

    def _count_bins(self, firings: Firings, size: torch.Tensor) -> None:
        # frexp gives size < 2^power, the least such power.
        wanted = torch.frexp(size).exponent - _BINS_LOG2
        exponent = self.exponent.clone().scatter_reduce_(0, firings.latent, wanted, "amax")
        grown = (exponent > self.exponent).nonzero().squeeze(1)
        if len(grown):
            shift = (exponent - self.exponent)[grown].clamp(max=_BINS_LOG2 + 1).long()
            merged = torch.arange(BINS).expand(len(grown), 2, BINS) >> shift[:, None, None]
            old = self.histogram[grown]
            self.histogram[grown] = torch.zeros_like(old).scatter_add_(2, merged, old)
            self.exponent[grown] = exponent[grown]
        bins = torch.ldexp(size, -self.exponent[firings.latent]).long()
        flat = (firings.latent * 2 + firings.side) * BINS + bins
        ones = torch.ones(len(flat), dtype=torch.int32)
        self.histogram.view(-1).index_add_(0, flat, ones)

    def _keep_strongest(self, side: int, z: torch.Tensor, firings: Firings, first_row: int) -> None:
        best = self._one_per_sequence(z, firings)
        size = best.value.abs()
        stronger = size > self.peak[side, best.latent, -1]  # of equals the earlier one stays
        best, size = best.where(stronger), size[stronger]
        if not len(size):
            return
        latents, slot = best.latent.unique(return_inverse=True)
        rows, n = len(z), self.n
        peaks = torch.zeros(len(latents), n + rows)
        places = torch.zeros(len(latents), n + rows, 2, dtype=torch.int32)
        peaks[:, :n], places[:, :n] = self.peak[side, latents], self.place[side, latents]
        peaks[slot, n + best.row] = size
        places[slot, n + best.row] = torch.stack([best.row + first_row, best.position], dim=1).to(
            torch.int32
        )
        order = peaks.sort(dim=1, descending=True, stable=True).indices[:, :n]
        windows = self.window[side, latents].gather(
            1, order.clamp(max=n - 1)[..., None].expand(-1, -1, 2 * self.radius + 1)
        )
        new = (order >= n) & (peaks.gather(1, order) > 0)
        which, _ = new.nonzero(as_tuple=True)
        places = places.gather(1, order[..., None].expand(-1, -1, 2))
        windows[new] = self._windows(z, order[new] - n, places[new][:, 1].long(), latents[which])
        self.peak[side, latents] = peaks.gather(1, order)
        self.place[side, latents] = places
        self.window[side, latents] = windows

    def _one_per_sequence(self, z: torch.Tensor, firings: Firings) -> Firings:
        """The strongest firing of each latent in each sequence, the first of equals."""
        key, size = firings.row * self.d_sae + firings.latent, firings.value.abs()
        peaks = torch.zeros(len(z) * self.d_sae).scatter_reduce_(0, key, size, "amax")
        is_peak = size == peaks[key]
        first = torch.full((len(peaks),), z.shape[1])
        first.scatter_reduce_(0, key[is_peak], firings.position[is_peak], "amin")
        return firings.where(is_peak & (firings.position == first[key]))

    def _windows(
        self, z: torch.Tensor, row: torch.Tensor, position: torch.Tensor, latent: torch.Tensor
    ) -> torch.Tensor:
        """`z` of one latent each around one position each, `[n, 2 radius + 1]`, 0 outside."""
        at = position[:, None] + torch.arange(-self.radius, self.radius + 1)
        inside = (at >= 0) & (at < z.shape[1])
        at = at.clamp(0, z.shape[1] - 1)
        return z[row[:, None], at, latent[:, None]] * inside
