"""Intervals and verdicts of the steering recipes: bootstrap over prompts and seeds, Holm's rule.

A claim is tested in cells (a budget, a judge, a rival). It holds where it holds in every cell, does
not hold where it fails in one, each beyond what chance explains; otherwise it is undecided.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recipes.common.claims import DOES_NOT_HOLD, HOLDS, NOT_RUN, UNDECIDED
from recipes.common.verdicts import verdict_of_interval

__all__ = [
    "Test",
    "benjamini_hochberg",
    "bootstrap",
    "holm",
    "verdict_of",
    "verdict_of_interval",
]


class Test(NamedTuple):
    """A mean against a margin."""

    mean: float
    low: float  # 95% interval
    high: float
    above: float  # one-sided p that the mean is not above the margin
    below: float  # one-sided p that it is not below

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap(values: np.ndarray, margin: float = 0.0, draws: int = 4000, seed: int = 0) -> Test:
    """The mean of `values`, `[seeds, prompts]`, both drawn anew with replacement.

    Rows and columns are drawn independently, so that prompts shared by seeds stay paired. With few
    seeds the interval is too narrow: of three, the variance between seeds comes out at two thirds.
    """
    generator = np.random.default_rng(seed)
    rows, columns = (
        generator.multinomial(n, np.full(n, 1 / n), size=draws) / n for n in values.shape
    )
    means = ((rows @ values) * columns).sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    above, below = (
        (1 + int(hits.sum())) / (1 + draws) for hits in (means <= margin, means >= margin)
    )
    return Test(float(values.mean()), float(low), float(high), above, below)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: the false discovery rate at which each would be found."""
    order = sorted(range(len(p)), key=lambda i: p[i], reverse=True)
    adjusted, smallest = [1.0] * len(p), 1.0
    for rank, i in enumerate(order):
        smallest = min(smallest, p[i] * len(p) / (len(p) - rank))
        adjusted[i] = smallest
    return adjusted


def verdict_of(tests: Sequence[Test], alpha: float = 0.05) -> str:
    """The verdict on a claim that must hold in every cell; Holm's rule over the cells."""
    if not tests:
        return NOT_RUN
    above, below = (holm([getattr(test, way) for test in tests]) for way in ("above", "below"))
    if all(p <= alpha / 2 for p in above):
        return HOLDS
    return DOES_NOT_HOLD if any(p <= alpha / 2 for p in below) else UNDECIDED
