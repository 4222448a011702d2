"""Verdicts: by hand, and over a thousand simulated runs each."""

import math

import numpy as np
import pytest

from recipes.common.claims import DOES_NOT_HOLD, HOLDS, NOT_RUN, UNDECIDED
from recipes.common.verdicts import (
    Estimate,
    decide,
    decide_all,
    decide_any,
    decide_half,
    decide_within,
    examples_error,
    judged,
    over_seeds,
    seeds_needed,
    targets_claim,
)
from sae_lens_bipolar.errors import DataError

SURE, BAD, OPEN = Estimate(0.5, 0.01, 3), Estimate(-0.5, 0.01, 3), Estimate(0.1, 1.0, 3)


def test_the_interval_is_students() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found[:3] == pytest.approx((2.0, 1 / math.sqrt(3), 3))
    half = 4.302653 / math.sqrt(3)  # t of two degrees of freedom
    assert found.interval() == pytest.approx((2 - half, 2 + half))
    wider = over_seeds([1.0, 2.0, 3.0], examples=1.0).interval()
    assert wider == pytest.approx((2 - math.hypot(half, 1.959964), 2 + math.hypot(half, 1.959964)))
    with pytest.raises(DataError, match="at least one seed"):
        over_seeds([])


def test_the_four_verdicts() -> None:
    assert decide(SURE, 0.2) == HOLDS
    assert decide(SURE, 0.5) == UNDECIDED
    assert decide(SURE, 0.9) == DOES_NOT_HOLD
    assert decide(None, 0.2) == NOT_RUN
    assert decide(over_seeds([5.0]), 0.0) == UNDECIDED  # one seed


def test_claims_over_several_cells() -> None:
    assert decide_all([(SURE, 0), (SURE, 0.2)]) == HOLDS
    assert decide_all([(SURE, 0), (OPEN, 0)]) == UNDECIDED
    assert decide_all([(SURE, 0), (BAD, 0), (OPEN, 0)]) == DOES_NOT_HOLD
    assert decide_all([]) == NOT_RUN
    assert decide_any([(BAD, 0), (SURE, 0), (OPEN, 0)]) == HOLDS
    assert decide_any([(BAD, 0), (BAD, -0.1)]) == DOES_NOT_HOLD
    assert decide_any([(BAD, 0), (OPEN, 0)]) == UNDECIDED
    assert decide_half([(SURE, 0), (BAD, 0)]) == HOLDS
    assert decide_half([(SURE, 0), (BAD, 0), (OPEN, 0)]) == UNDECIDED
    assert decide_half([(SURE, 0), (BAD, 0), (BAD, 0)]) == DOES_NOT_HOLD
    assert decide_half([]) == NOT_RUN


def test_no_further_than() -> None:
    near = Estimate(0.001, 0.0005, 3)
    assert decide_within(near, 0.01) == HOLDS
    assert decide_within(near, 0.002) == UNDECIDED
    assert decide_within(SURE, 0.01) == decide_within(BAD, 0.01) == DOES_NOT_HOLD
    assert decide_within(None, 0.01) == NOT_RUN


def test_one_cell_is_below_by_chance_less_often_where_there_are_many() -> None:
    barely = Estimate(-1.0, 0.22, 3)  # below 0 at 95%, not at 97.5%
    assert decide_all([(barely, 0)]) == DOES_NOT_HOLD
    assert decide_all([(barely, 0), (SURE, 0)]) == UNDECIDED


@pytest.mark.parametrize("n", [3, 5])
def test_no_difference_is_not_found(n: int) -> None:
    """In at least 95% of 1,000 runs, with no margin at all; a margin leaves less to chance."""
    draw = np.random.default_rng(n)
    found = [decide(over_seeds(list(draw.normal(0, 1, n))), 0.0) for _ in range(1000)]
    assert found.count(HOLDS) <= 50
    assert found.count(DOES_NOT_HOLD) <= 50
    draw = np.random.default_rng(n)
    with_margin = [decide(over_seeds(list(draw.normal(0, 1, n))), 1.0) for _ in range(1000)]
    assert with_margin.count(HOLDS) <= found.count(HOLDS)


@pytest.mark.parametrize(("deviation", "margin"), [(0.001, 0.005), (0.01, 0.01), (0.02, 0.005)])
def test_twice_the_margin_is_found_with_the_seeds_it_takes(deviation: float, margin: float) -> None:
    """In 90% of 1,000 runs with the number that the report prints, and in fewer with one less."""
    n = seeds_needed(deviation, margin)
    assert n is not None

    def found(n: int) -> float:
        draw = np.random.default_rng(7)
        runs = draw.normal(2 * margin, deviation, (1000, n))
        return sum(decide(over_seeds(list(run)), margin) == HOLDS for run in runs) / 1000

    assert found(n) >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / 1000)  # of 1,000 runs
    if n > 2:
        assert found(n - 1) < 0.9 + 3 * math.sqrt(0.9 * 0.1 / 1000)


def test_three_seeds_suffice_for_the_deviations_that_were_seen() -> None:
    """R² of an SAE differs by 0.001 and less from seed to seed; the margins are 5 times that."""
    assert seeds_needed(0.001, 0.005) == 3
    assert seeds_needed(0.001, 0.0) is None
    assert seeds_needed(0.0, 0.005) == 2
    assert seeds_needed(10.0, 0.005) is None


def test_an_undecided_claim_says_what_it_would_take() -> None:
    wide = over_seeds([0.0, 0.02, 0.04])
    claim = judged("c", "p", "o", [(SURE, 0.1), (wide, 0.01)], UNDECIDED, seeds=3, tokens=5)
    assert claim.ours == "o. 44 seeds would find twice the margin in 9 of 10 runs"
    assert (claim.estimate, claim.margin) == (pytest.approx(0.02), 0.01)
    assert claim.low == pytest.approx(0.02 - 4.302653 * 0.02 / math.sqrt(3))
    assert claim.interval.startswith("+0.0200 [-0.0297, +0.0697] against +0.0100")
    bare = judged("c", "p", "", [], NOT_RUN, seeds=0, tokens=0)
    assert bare.interval == ""


def test_test_examples_count() -> None:
    assert examples_error(50) == pytest.approx(0.1)
    assert decide(Estimate(0.1, 0.001, 3, examples_error(16)), 0.0) == UNDECIDED


def test_targets() -> None:
    row = {"name": "x", "l0": 21.0, "l0_target": 20, "seed": 0, "n_train_tokens": 9}
    assert targets_claim([row]).verdict == HOLDS
    assert targets_claim([row], 0.04).verdict == DOES_NOT_HOLD
    assert targets_claim([]).verdict == NOT_RUN
