"""Averages over tokens, in float64: nMSE, R^2 and L0."""

from typing import Any

import torch

from sae_lens_bipolar.architectures.training.precision import in_float64

_NO_VARIATION = 1e-10  # variation of x per token below which x counts as constant, as in SAELens


def nmse(x: torch.Tensor, xhat: torch.Tensor) -> torch.Tensor:
    """`|x - xhat|^2 / |x|^2` per token, `[...]` from two tensors `[..., d_in]`.

    It is 0 where `|x| = 0`, where it is not defined; `mean_nmse` leaves such tokens out.
    """
    norm = x.pow(2).sum(-1)
    return torch.where(norm > 0, (x - xhat).pow(2).sum(-1) / norm, torch.zeros_like(norm))


def mean_nmse(x: torch.Tensor, xhat: torch.Tensor) -> float:
    """Mean of `nmse` over the tokens with `|x| > 0`; 0.0 if there are none."""
    return total(nmse(x, xhat)) / max(1, int((x.pow(2).sum(-1) > 0).sum()))


def total(values: torch.Tensor, *dims: int) -> Any:
    """Sum in float64: a number, or with `dims` a tensor."""
    values = in_float64(values)
    return values.sum(dims) if dims else values.sum().item()


class Averages:
    """Running sums behind nMSE, R^2 and L0."""

    def __init__(self) -> None:
        self.n_tokens, self.n_nonzero, self.nmse, self.l0 = 0, 0, 0.0, 0.0
        self.error, self.variation = 0.0, 0.0
        self.mean: torch.Tensor | None = None

    def add(self, x: torch.Tensor, xhat: torch.Tensor, l0: torch.Tensor) -> None:
        if not len(x):
            return
        self.n_nonzero += int((x.pow(2).sum(-1) > 0).sum())
        self.nmse += total(nmse(x, xhat))
        self.l0 += total(l0)
        self.error += total((x - xhat).pow(2))
        # |x - mean|^2 is summed about this batch's own mean, then moved to the common one: the
        # difference of two large sums would be lost where the mean is large.
        n, mean = len(x), total(x, 0).cpu() / len(x)
        self.variation += total((x - mean.to(x)).pow(2)) - n * total(
            (total(x - mean.to(x), 0) / n).pow(2)
        )
        before = mean if self.mean is None else self.mean
        both = self.n_tokens + n
        self.variation += total((mean - before).pow(2)) * self.n_tokens * n / both
        self.mean = before + (mean - before) * (n / both)
        self.n_tokens = both

    def result(self) -> dict[str, Any]:
        n = max(1, self.n_tokens)
        if self.variation / n < _NO_VARIATION:
            r2 = 1.0 if self.error / n < _NO_VARIATION else 0.0
        else:
            r2 = 1.0 - self.error / self.variation
        return {
            "n_tokens": self.n_tokens,
            "nmse": self.nmse / max(1, self.n_nonzero),
            "r2": r2,
            "l0": self.l0 / n,
        }
