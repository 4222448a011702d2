"""The rule for verdicts: an estimate with its 95% interval against a margin fixed before the run.

A claim says that something is above a margin. It holds where the whole interval is above, it does
not hold where the whole interval is below, and otherwise it is undecided: with one seed always.

    half width = hypot(t(n - 1) s / sqrt(n), 1.96 e)

with `s` the deviation over n seeds, paired where two SAEs are compared, and `e` the standard error
that test examples add, where they are shared by all seeds. A bootstrap over three seeds would be
too narrow by half; over prompts of generations `abstopk.steering_statistics` draws one.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from recipes.common.claims import DOES_NOT_HOLD, HOLDS, NOT_RUN, UNDECIDED, Claim, verdict
from recipes.common.comparisons import L0_TOLERANCE, Row, met_targets
from sae_lens_bipolar.errors import DataError

CONFIDENCE = 0.95
POWER = 0.9  # share of runs in which a difference of twice the margin is to be found
MOST_SEEDS = 1000  # beyond, a sample size is not looked for


class Estimate(NamedTuple):
    """A mean over seeds, and how sure it is."""

    mean: float
    error: float | None  # standard error over seeds; None with one seed
    n: int  # seeds
    examples: float = 0.0  # standard error from the test examples, which all seeds share

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """The confidence interval; None with one seed."""
        from scipy.stats import norm, t

        if self.error is None:
            return None
        at = (1 + confidence) / 2
        half = math.hypot(t.ppf(at, self.n - 1) * self.error, norm.ppf(at) * self.examples)
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        found = self.interval()
        if found is None:
            return f"{self.mean:+.4f} (one seed: no interval)"
        return f"{self.mean:+.4f} [{found[0]:+.4f}, {found[1]:+.4f}]"

    def __neg__(self) -> "Estimate":
        return self._replace(mean=-self.mean)


Tested = tuple[Estimate, float]  # an estimate and the margin it is to exceed


def over_seeds(values: Sequence[float], examples: float = 0.0) -> Estimate:
    """The estimate of a mean from one value per seed.

    Raises:
        DataError: if there is no value.
    """
    if not values:
        raise DataError("an estimate needs at least one seed, found none")
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(fmean(values), error, len(values), examples)


def examples_error(n_examples: int) -> float:
    """Largest standard error of a difference of two accuracies on `n_examples` test examples.

    SAEBench's results have accuracies and not which examples were right, so the pairing of two SAEs
    on the same examples cannot be used; unpaired, the variance is at most 1/4 each.
    """
    return math.sqrt(2 * 0.25 / n_examples)


def decide(estimate: Estimate | None, margin: float) -> str:
    """The verdict on "above `margin`"; of None that it was not run."""
    return NOT_RUN if estimate is None else decide_all([(estimate, margin)])


def decide_all(tested: Sequence[Tested]) -> str:
    """The verdict on a claim that must hold in every one of several cells.

    Each must be above its margin at 95%; one below is enough against it, at Bonferroni's level.
    """
    if not tested:
        return NOT_RUN
    if all(_low(one, CONFIDENCE) > margin for one, margin in tested):
        return HOLDS
    strict = 1 - (1 - CONFIDENCE) / len(tested)
    below = any(_high(one, strict) < margin for one, margin in tested)
    return DOES_NOT_HOLD if below else UNDECIDED


def decide_any(tested: Sequence[Tested]) -> str:
    """The verdict on a claim that must hold in one of several cells."""
    opposite = {HOLDS: DOES_NOT_HOLD, DOES_NOT_HOLD: HOLDS}
    found = decide_all([(-one, -margin) for one, margin in tested])
    return opposite.get(found, found)


def decide_half(tested: Sequence[Tested]) -> str:
    """The verdict on a claim that must hold in half of several cells or more."""
    found = [decide_all([one]) for one in tested]
    if not found:
        return NOT_RUN
    if 2 * found.count(HOLDS) >= len(found):
        return HOLDS
    return DOES_NOT_HOLD if 2 * found.count(DOES_NOT_HOLD) > len(found) else UNDECIDED


def decide_within(estimate: Estimate | None, bound: float) -> str:
    """The verdict on "no further from 0 than `bound`"."""
    if estimate is None:
        return NOT_RUN
    return decide_all([(estimate, -bound), (-estimate, -bound)])


def verdict_of_interval(low: float, high: float, threshold: float) -> str:
    """Whether something is above a threshold, from its interval."""
    return HOLDS if low > threshold else DOES_NOT_HOLD if high < threshold else UNDECIDED


def _low(estimate: Estimate, confidence: float) -> float:
    return (estimate.interval(confidence) or (-math.inf, math.inf))[0]


def _high(estimate: Estimate, confidence: float) -> float:
    return (estimate.interval(confidence) or (-math.inf, math.inf))[1]


def seeds_needed(deviation: float, margin: float, power: float = POWER) -> int | None:
    """Seeds with which a difference of twice the margin is found with probability `power`.

    Args:
        deviation: over seeds.
        margin: above 0.
        power: share of runs in which the whole interval is above the margin.

    Returns:
        The number, 2 or more; None if 1000 do not suffice, or the margin is 0.
    """
    from scipy.stats import nct, t

    if margin <= 0:
        return None
    if deviation == 0:
        return 2
    for n in range(2, MOST_SEEDS + 1):
        critical = t.ppf((1 + CONFIDENCE) / 2, n - 1)
        if nct.sf(critical, n - 1, margin * math.sqrt(n) / deviation) >= power:
            return n
    return None


def judged(
    claim: str, paper: str, ours: str, tested: Sequence[Tested], outcome: str, **more: Any
) -> Claim:
    """A claim with the estimate that lies lowest over its margin, and the seeds it would take."""
    if not tested:
        return Claim(claim, paper, ours, **more, verdict=outcome)
    worst, margin = min(
        tested, key=lambda one: (_low(one[0], CONFIDENCE) - one[1], one[0].mean - one[1])
    )
    low, high = worst.interval() or (None, None)
    if outcome == UNDECIDED and worst.error is not None:
        needed = seeds_needed(worst.error * math.sqrt(worst.n), abs(margin))
        if needed is not None and needed > worst.n:
            ours += f". {needed} seeds would find twice the margin in 9 of 10 runs"
    return Claim(
        *(claim, paper, ours),
        **more,
        verdict=outcome,
        estimate=worst.mean,
        low=low,
        high=high,
        margin=margin,
    )


def targets_claim(rows: Sequence[Row], tolerance: float = L0_TOLERANCE) -> Claim:
    """Whether every SAE has the L0 it was asked for (`l0_target`), on held-out tokens."""
    found = met_targets(rows, tolerance)
    furthest = f"furthest off {found.name}, by {found.furthest:.1%}"
    return Claim(
        f"every SAE meets its L0 target within {tolerance:.0%} on held-out tokens",
        "not given: our condition of a fair comparison",
        f"{found.met} of {found.n}; {furthest}" if rows else "",
        seeds=len({row["seed"] for row in rows}),
        tokens=max((row["n_train_tokens"] for row in rows), default=0),
        verdict=verdict(found.met == found.n if rows else None),
    )
