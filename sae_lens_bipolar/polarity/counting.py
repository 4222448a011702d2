"""The bipolar census: which latents fire on which side, how often, and how strongly."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.architectures.training.checks import require_finite
from sae_lens_bipolar.errors import DataError

_ROWS = 256  # rows of dense latents summed at a time, so that temporaries stay small
_SIDES = ("positive", "negative")
_STATISTICS = ("rate", "mean", "max")


@dataclass(frozen=True, eq=False)
class Census:
    """Firing statistics of every latent, per side.

    Magnitudes are `|z|` in the units of the latents; a mean is over the tokens on which that side
    fires, and 0 if it never does. Tensors are float64 (counts int64), `[d_sae]`, on the CPU.

    Args:
        n_tokens: tokens counted.
        positive_count: tokens with `z > 0`.
        negative_count: tokens with `z < 0`.
        positive_mean: mean of `z` where `z > 0`.
        negative_mean: mean of `-z` where `z < 0`.
        positive_max: largest `z`, at least 0.
        negative_max: largest `-z`, at least 0.
    """

    n_tokens: int
    positive_count: torch.Tensor
    negative_count: torch.Tensor
    positive_mean: torch.Tensor
    negative_mean: torch.Tensor
    positive_max: torch.Tensor
    negative_max: torch.Tensor

    @property
    def positive_rate(self) -> torch.Tensor:
        """Share of tokens on which the latent is positive, `[d_sae]`."""
        return self.positive_count.double() / self.n_tokens

    @property
    def negative_rate(self) -> torch.Tensor:
        """Share of tokens on which the latent is negative, `[d_sae]`."""
        return self.negative_count.double() / self.n_tokens

    @property
    def alive(self) -> torch.Tensor:
        """Whether the latent fired at all, `[d_sae]` bool."""
        return (self.positive_count > 0) | (self.negative_count > 0)

    @property
    def bipolar(self) -> torch.Tensor:
        """Whether the latent fired on both sides, `[d_sae]` bool."""
        return (self.positive_count > 0) & (self.negative_count > 0)

    @property
    def bipolar_fraction(self) -> float:
        """Share of the live latents that fire on both sides; 0 if none is alive."""
        alive = int(self.alive.sum())
        return int(self.bipolar.sum()) / alive if alive else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `n_tokens`, and `{positive,negative}_{rate,mean,max}` as lists of floats."""
        lists = {
            f"{side}_{statistic}": getattr(self, f"{side}_{statistic}").tolist()
            for statistic in _STATISTICS
            for side in _SIDES
        }
        return {"n_tokens": self.n_tokens, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Census":
        """The census `to_dict` wrote; counts are rates times tokens, rounded.

        Raises:
            DataError: if a key is missing or the lists differ in length.
        """
        keys = [f"{side}_{statistic}" for statistic in _STATISTICS for side in _SIDES]
        missing = [key for key in ("n_tokens", *keys) if key not in values]
        if missing:
            raise DataError(f"a census needs {', '.join(missing)}; found {', '.join(values)}")
        lengths = {key: len(values[key]) for key in keys}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the lists of a census must have the same length, found {lengths}")
        n_tokens = int(values["n_tokens"])
        lists = {key: torch.tensor(values[key], dtype=torch.float64) for key in keys}
        counts = {
            f"{side}_count": (lists.pop(f"{side}_rate") * n_tokens).round().long()
            for side in _SIDES
        }
        return cls(n_tokens=n_tokens, **counts, **lists)


class CensusCounter:
    """Counts latents batch by batch; keeps only `[d_sae]` tensors, however long the stream."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae, self.n_tokens = d_sae, 0
        self._count = torch.zeros(2, d_sae, dtype=torch.int64)
        self._sum = torch.zeros(2, d_sae, dtype=torch.float64)
        self._max = torch.zeros(2, d_sae, dtype=torch.float64)

    @torch.no_grad()
    def add(self, latents: torch.Tensor) -> None:
        """Count signed latents, `[..., d_sae]`, dense or sparse; leading dimensions are tokens."""
        latents = latents.to_dense() if latents.is_sparse else latents
        latents = latents.reshape(-1, self.d_sae)
        self.n_tokens += len(latents)
        for start in range(0, len(latents), _ROWS):
            rows = latents[start : start + _ROWS]
            for side, magnitudes in enumerate((rows.relu(), (-rows).relu())):
                self._count[side] += (magnitudes > 0).sum(0).cpu()
                # float32 over these few rows, float64 over the stream (some devices lack float64).
                dtype = torch.promote_types(rows.dtype, torch.float32)
                self._sum[side] += magnitudes.sum(0, dtype=dtype).cpu()
                largest = magnitudes.amax(0).cpu().double()
                self._max[side] = torch.maximum(self._max[side], largest)

    def result(self) -> Census:
        """The census so far.

        Raises:
            DataError: if no token was counted.
        """
        if not self.n_tokens:
            raise DataError("the census got no activations; give it at least one token")
        mean = self._sum / self._count.clamp(min=1)
        return Census(
            self.n_tokens,
            *self._count.clone().unbind(),
            *mean.unbind(),
            *self._max.clone().unbind(),
        )


@torch.no_grad()
def census(sae: SAE[Any], activations: Iterable[torch.Tensor]) -> Census:
    """Count on which side each latent of `sae` fires, over a stream of activations.

    Only `[d_sae]` tensors are kept, so the stream may be of any length. A non-negative SAE is
    allowed: its negative side is empty.

    Args:
        sae: any SAE of SAELens or of this package.
        activations: tensors `[batch, d_in]`, or `[batch, position, d_in]`; what `sae.encode` takes.

    Raises:
        DataError: if there is no token at all.
        ActivationError: if a batch holds NaN or infinite values.
    """
    counter = CensusCounter(sae.cfg.d_sae)
    for index, batch in enumerate(activations):
        if batch.numel():
            require_finite(batch, sae.cfg.metadata.hook_name, index)
            counter.add(sae.encode(batch.to(sae.device)))
    return counter.result()
