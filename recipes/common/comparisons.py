"""What makes a comparison of SAEs fair, and how sure it is: one set of seed statistics.

SAEs of different kinds are compared seed by seed: `matched_differences` pairs their rows. Over
seeds, figures are given as mean ± standard error (`mean_and_error`), or with a bootstrap
confidence interval of the mean (`bootstrap`). They must have the L0 they were asked for, within
`L0_TOLERANCE`.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.evaluation.pareto import standard_error

Row = Mapping[str, Any]

L0_TOLERANCE = 0.15  # relative distance of the measured L0 from its target


class Mean(NamedTuple):
    """A mean over seeds with its standard error."""

    mean: float
    error: float | None  # None with one seed

    def __str__(self) -> str:
        return self.shown(4)

    def shown(self, digits: int) -> str:
        """`+0.0123 ± 0.0004`; without the error if it is None."""
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
        return f"{self.mean:+.{digits}f}{error}"


class Interval(NamedTuple):
    """A mean over seeds with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


class MetTargets(NamedTuple):
    """How many SAEs have the L0 they were asked for."""

    met: int  # SAEs within the tolerance
    n: int  # all SAEs
    furthest: float  # largest relative distance from a target
    name: str  # the SAE at that distance; "" if rows have no names


def select(rows: Sequence[Row], **where: Any) -> list[Row]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def matched_differences(
    ours: Sequence[Row], theirs: Sequence[Row], metric: str, by: Sequence[str] = ("seed",)
) -> dict[tuple[Any, ...], float]:
    """`ours - theirs` of one metric, by the values of the fields `by`, in ascending order.

    Args:
        ours: at most one row for each value of `by`.
        theirs: likewise for the other kind; values that only one of the two has are left out.
        metric: field that is subtracted.
        by: fields that a pair shares.
    """
    mine, other = (
        {tuple(row[key] for key in by): row[metric] for row in rows} for rows in (ours, theirs)
    )
    return {key: mine[key] - other[key] for key in sorted(mine.keys() & other.keys())}


def mean_and_error(values: Sequence[float]) -> Mean:
    """Mean and standard error over seeds."""
    error = standard_error(values)
    return Mean(fmean(values), None if error is None else float(error))


def means_over_seeds(
    rows: Sequence[Row], by: Sequence[str], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per combination of the fields `by`: `METRIC` and `METRIC_se`, and `n_seeds`."""
    found = []
    for point in dict.fromkeys(tuple(row[key] for key in by) for row in rows):
        same = [row for row in rows if tuple(row[key] for key in by) == point]
        mean: dict[str, Any] = {**dict(zip(by, point, strict=True)), "n_seeds": len(same)}
        for metric in metrics:
            mean[metric], mean[f"{metric}_se"] = mean_and_error([row[metric] for row in same])
        found.append(mean)
    return found


def bootstrap(values: Sequence[float], confidence: float = 0.95, draws: int = 10_000) -> Interval:
    """Percentile bootstrap of the mean over seeds; the draws are the same every time.

    Raises:
        DataError: if there are no values.
    """
    if not len(values):
        raise DataError("a bootstrap needs at least one value, found none")
    sample = np.asarray(values, dtype=float)
    means = np.random.default_rng(0).choice(sample, (draws, len(sample))).mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(sample.mean()), float(low), float(high))


def met_targets(rows: Sequence[Row], tolerance: float = L0_TOLERANCE) -> MetTargets:
    """How many rows have an `l0` within a relative distance of their `l0_target`."""
    off = [(abs(row["l0"] / row["l0_target"] - 1), row.get("name", "")) for row in rows]
    furthest, name = max(off, default=(0.0, ""))
    return MetTargets(sum(error <= tolerance for error, _ in off), len(off), furthest, name)
