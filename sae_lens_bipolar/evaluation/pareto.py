"""Comparing sparsity-fidelity curves of SAEs: L0 overlap, dominance, geometric means of ratios.

A curve gives a measure (R^2, say) of one kind of SAE at each measured L0, and is interpolated
linearly in log L0. Curves are compared only where both were measured. That interval comes from the
L0s alone, so it is fixed before the measure is looked at.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sae_lens_bipolar.errors import DataError

Curve = Sequence[tuple[float, float]]  # (L0, value), in any order


def overlap(l0s: Iterable[Sequence[float]]) -> tuple[float, float] | None:
    """The interval of L0 that every sweep covers: `[max of minima, min of maxima]`.

    Args:
        l0s: the measured L0s of each sweep.

    Returns:
        Its two ends, equal if the sweeps share one point; None if they share none.

    Raises:
        DataError: if a sweep is empty or an L0 is not a positive number.
    """
    ranges = [_range(values) for values in l0s]
    if not ranges:
        raise DataError("an L0 overlap needs sweeps and got none: give at least one")
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    return (low, high) if low <= high else None


def interpolate(curve: Curve, l0: Sequence[float]) -> np.ndarray:
    """Values at `l0`, linear in log L0 between the points; points of equal L0 are averaged.

    Raises:
        DataError: if an L0 lies outside the curve: there is no extrapolation.
    """
    by_l0: dict[float, list[float]] = {}
    for x, y in curve:
        by_l0.setdefault(x, []).append(y)
    xs = sorted(by_l0)
    low, high = _range(xs)
    outside = [x for x in l0 if not low <= x <= high]
    if outside:
        raise DataError(f"L0 {outside} lie outside the measured range, {low} to {high}")
    values = [sum(by_l0[x]) / len(by_l0[x]) for x in xs]
    return np.interp(np.log(l0), np.log(xs), values)


@dataclass(frozen=True)
class Comparison:
    """`ours - theirs` over the L0 overlap, as a mean over seeds.

    Args:
        low: lower end of the overlap.
        high: upper end.
        l0: the L0s where either curve of any seed has a point, and both ends. A difference of
            piecewise linear curves takes its extremes there, so nothing falls between them.
        difference: mean over seeds at each of `l0`.
        standard_error: of `difference`, over seeds; None with one seed.
        mean_difference: average of the difference over the overlap, in log L0.
        mean_standard_error: of `mean_difference`, over seeds; None with one seed.
        n_seeds: number of seeds that both have; they are compared seed by seed.
    """

    low: float
    high: float
    l0: tuple[float, ...]
    difference: tuple[float, ...]
    standard_error: tuple[float, ...] | None
    mean_difference: float
    mean_standard_error: float | None
    n_seeds: int

    @property
    def dominates(self) -> bool:
        """Whether ours is strictly higher at every L0 of the overlap."""
        return min(self.difference) > 0


def compare(ours: Mapping[int, Curve], theirs: Mapping[int, Curve]) -> Comparison | None:
    """Compare two sweeps over the L0 range that all their seeds cover; None if that is empty.

    Args:
        ours: one curve per seed.
        theirs: the other sweep; only seeds that both have are compared.

    Raises:
        DataError: if they have no seed in common.
    """
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        raise DataError(f"no seed in common: ours {sorted(ours)}, theirs {sorted(theirs)}")
    curves = [curve for seed in seeds for curve in (ours[seed], theirs[seed])]
    shared = overlap([x for x, _ in curve] for curve in curves)
    if shared is None:
        return None
    low, high = shared
    l0 = sorted({low, high, *(x for curve in curves for x, _ in curve if low < x < high)})
    differences = np.stack(
        [interpolate(ours[seed], l0) - interpolate(theirs[seed], l0) for seed in seeds]
    )
    averages = np.array([_average(np.log(l0), difference) for difference in differences])
    errors = standard_error(differences)
    average_error = standard_error(averages)
    return Comparison(
        low=low,
        high=high,
        l0=tuple(l0),
        difference=tuple(differences.mean(axis=0).tolist()),
        standard_error=None if errors is None else tuple(errors.tolist()),
        mean_difference=float(averages.mean()),
        mean_standard_error=None if average_error is None else float(average_error),
        n_seeds=len(seeds),
    )


def standard_error(values: Sequence[float] | np.ndarray) -> np.ndarray | None:
    """`std / sqrt(n)` along the first axis, with `n - 1` in the variance; None for `n = 1`."""
    array = np.asarray(values, dtype=float)
    return array.std(axis=0, ddof=1) / math.sqrt(len(array)) if len(array) > 1 else None


class GeometricMean(NamedTuple):
    """A geometric mean of ratios."""

    value: float  # inf where a denominator is 0 and no floor was given
    n: int  # ratios averaged
    n_floored: int  # of these, ratios in which a fraction was 0 and its floor was taken


def geometric_mean_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    floors: Sequence[tuple[float, float]] | None = None,
) -> GeometricMean:
    """`exp(mean log(numerator / denominator))` of fractions that may be 0.

    A fraction of 0 only says "less than one in so many". With `floors` it is replaced by its
    floor, commonly half of the smallest fraction that could have been seen; a ratio of two zeros
    is 1 either way. Without floors a zero denominator gives inf, a zero numerator 0, and both in
    one sweep NaN: the mean is then unbounded on both sides.

    Args:
        numerators: one per point of the sweep.
        denominators: of the other sweep, at the same points.
        floors: (of the numerator, of the denominator) at each point.

    Raises:
        DataError: if there is no point, the lengths differ, or a value is negative or NaN.
    """
    n = len(numerators)
    if n == 0 or len(denominators) != n or (floors is not None and len(floors) != n):
        raise DataError(
            f"a geometric mean needs pairs: {n} numerators, {len(denominators)} denominators"
        )
    bad = [v for v in (*numerators, *denominators) if not v >= 0]
    if bad:
        raise DataError(f"fractions must be 0 or more, got {bad}")
    logs, floored = [], 0
    for i, (top, bottom) in enumerate(zip(numerators, denominators, strict=True)):
        if top == bottom == 0:
            logs.append(0.0)
            continue
        if floors is not None and 0 in (top, bottom):
            floored += 1
            top, bottom = top or floors[i][0], bottom or floors[i][1]
        logs.append(_log(top) - _log(bottom))
    return GeometricMean(math.exp(sum(logs) / n), n, floored)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _average(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of a piecewise linear curve over its range; its value if the range is one point."""
    if len(x) == 1:
        return float(y[0])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def _range(values: Sequence[float]) -> tuple[float, float]:
    if not len(values) or not all(math.isfinite(value) and value > 0 for value in values):
        raise DataError(f"measured L0s must be positive numbers, at least one; got {list(values)}")
    return min(values), max(values)
