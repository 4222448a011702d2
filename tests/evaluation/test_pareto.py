"""Pareto comparison and geometric means on curves made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.evaluation.pareto import (
    compare,
    geometric_mean_ratio,
    interpolate,
    overlap,
    standard_error,
)


def test_overlap_is_the_intersection_of_the_ranges() -> None:
    assert overlap([[8, 64, 16], [10, 100]]) == (10, 64)
    assert overlap([[8, 64], [64, 100]]) == (64, 64)
    assert overlap([[8, 16], [17, 100]]) is None
    assert overlap([[32], [8, 100]]) == (32, 32)


@pytest.mark.parametrize("l0s", [[], [[8, 16], []], [[0, 4]], [[math.nan]]])
def test_overlap_of_nothing_or_of_no_numbers_is_refused(l0s: list[list[float]]) -> None:
    with pytest.raises(DataError):
        overlap(l0s)


def test_interpolation_is_linear_in_log_l0() -> None:
    curve = [(64, 0.8), (16, 0.6)]
    assert interpolate(curve, [16, 32, 64]) == pytest.approx([0.6, 0.7, 0.8])
    assert interpolate([(16, 0.5), (16, 0.7), (64, 0.8)], [16]) == pytest.approx([0.6])
    with pytest.raises(DataError, match="outside"):
        interpolate(curve, [15.9])


def test_a_curve_above_dominates_and_the_margin_is_exact() -> None:
    ours, theirs = [(16, 0.7), (64, 0.9)], [(8, 0.5), (32, 0.7)]
    found = compare({0: ours}, {0: theirs})
    assert found is not None
    assert (found.low, found.high) == (16, 32)
    # theirs at 16 is 0.6; ours at 32 is 0.8.
    assert found.difference == pytest.approx((0.1, 0.1))
    assert found.mean_difference == pytest.approx(0.1)
    assert found.dominates
    assert found.standard_error is None
    assert found.n_seeds == 1
    back = compare({0: theirs}, {0: ours})
    assert back is not None
    assert not back.dominates


def test_crossing_curves_dominate_neither_way() -> None:
    flat, steep = [(16, 0.7), (64, 0.7)], [(16, 0.6), (64, 0.8)]
    for ours, theirs in ((flat, steep), (steep, flat)):
        found = compare({0: ours}, {0: theirs})
        assert found is not None
        assert not found.dominates
        assert found.mean_difference == pytest.approx(0.0)


def test_a_dip_between_the_ends_is_seen() -> None:
    ours, theirs = [(16, 0.7), (32, 0.5), (64, 0.9)], [(16, 0.6), (64, 0.6)]
    found = compare({0: ours}, {0: theirs})
    assert found is not None
    assert found.l0 == (16, 32, 64)
    assert min(found.difference) == pytest.approx(-0.1)
    assert not found.dominates


def test_touching_curves_do_not_dominate() -> None:
    found = compare({0: [(16, 0.6), (64, 0.8)]}, {0: [(16, 0.6), (64, 0.7)]})
    assert found is not None
    assert not found.dominates


def test_one_point_and_no_overlap() -> None:
    found = compare({0: [(32, 0.8)]}, {0: [(16, 0.6), (64, 0.7)]})
    assert found is not None
    assert (found.low, found.high, found.l0) == (32, 32, (32,))
    assert found.mean_difference == pytest.approx(0.15)
    assert compare({0: [(32, 0.8)]}, {0: [(64, 0.7)]}) is None


def test_standard_errors_are_over_seeds_compared_pairwise() -> None:
    base = {0: 0.5, 1: 0.6, 2: 0.9}
    gains = {0: 0.1, 1: 0.2, 2: 0.3}
    theirs = {s: [(16.0, v), (64.0, v)] for s, v in base.items()}
    ours = {s: [(16.0, v + gains[s]), (64.0, v + gains[s])] for s, v in base.items()}
    found = compare(ours | {9: [(1.0, 1.0)]}, theirs)  # a seed of one side only is left out
    assert found is not None
    assert found.n_seeds == 3
    assert found.difference == pytest.approx((0.2, 0.2))
    assert found.standard_error == pytest.approx((0.1 / math.sqrt(3),) * 2)
    assert found.mean_standard_error == pytest.approx(0.1 / math.sqrt(3))
    with pytest.raises(DataError, match="no seed in common"):
        compare({1: ours[1]}, {2: theirs[2]})


def test_the_overlap_is_that_of_all_seeds() -> None:
    wide, narrow = [(8.0, 0.1), (128.0, 0.9)], [(16.0, 0.4), (32.0, 0.6)]
    found = compare({0: wide, 1: narrow}, {0: wide, 1: wide})
    assert found is not None
    assert (found.low, found.high) == (16, 32)


def test_standard_error_of_one_is_none() -> None:
    assert standard_error([3.0]) is None
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)


def test_geometric_mean_of_ratios() -> None:
    assert geometric_mean_ratio([0.4, 0.1], [0.1, 0.1]) == (pytest.approx(2.0), 2, 0)
    assert geometric_mean_ratio([0.5], [0.01]) == (pytest.approx(50.0), 1, 0)


def test_zero_dead_fractions_stand_at_their_floors_or_are_unbounded() -> None:
    floors = [(0.01, 0.02), (0.01, 0.02)]
    assert geometric_mean_ratio([0.4, 0.2], [0.0, 0.2], floors) == (
        pytest.approx(math.sqrt(0.4 / 0.02)),
        2,
        1,
    )
    assert geometric_mean_ratio([0.0], [0.5], floors[:1]) == (pytest.approx(0.02), 1, 1)
    assert geometric_mean_ratio([0.0], [0.0], floors[:1]) == (1.0, 1, 0)
    assert geometric_mean_ratio([0.4, 0.2], [0.0, 0.2]).value == math.inf
    assert geometric_mean_ratio([0.0], [0.2]).value == 0.0
    assert math.isnan(geometric_mean_ratio([0.0, 0.2], [0.2, 0.0]).value)


@pytest.mark.parametrize(
    ("top", "bottom"), [([], []), ([0.1], [0.1, 0.2]), ([-0.1], [0.1]), ([math.nan], [0.1])]
)
def test_geometric_means_of_no_fractions_are_refused(top: list[float], bottom: list[float]) -> None:
    with pytest.raises(DataError):
        geometric_mean_ratio(top, bottom)


points = st.lists(
    st.tuples(st.floats(1, 500), st.floats(-1, 1)), min_size=1, max_size=6, unique_by=lambda p: p[0]
)


@given(points, points)
def test_comparison_is_antisymmetric_and_bounded_by_its_knots(a, b) -> None:
    there, back = compare({0: a}, {0: b}), compare({0: b}, {0: a})
    assert (there is None) == (back is None)
    if there is None or back is None:
        return
    assert there.difference == pytest.approx([-d for d in back.difference])
    grid = np.geomspace(there.low, there.high, 50).clip(there.low, there.high).tolist()
    dense = interpolate(a, grid) - interpolate(b, grid)
    assert min(there.difference) - 1e-9 <= dense.min()
    assert dense.max() <= max(there.difference) + 1e-9


def test_several_seeds_are_averaged_and_their_spread_told() -> None:
    ours = {0: [(1.0, 1.0), (4.0, 3.0)], 1: [(1.0, 2.0), (4.0, 2.0)], 2: [(1.0, 9.0)]}
    theirs = {0: [(1.0, 0.0), (4.0, 0.0)], 1: [(1.0, 1.0), (4.0, 0.0)]}
    found = compare(ours, theirs)  # differences 1 to 3 and 1 to 2, linear in log L0
    assert found is not None
    assert (found.low, found.high, found.l0, found.n_seeds) == (1.0, 4.0, (1.0, 4.0), 2)
    assert found.difference == pytest.approx((1.0, 2.5))
    assert found.standard_error == pytest.approx((0.0, 0.5))
    assert found.mean_difference == pytest.approx(1.75)
    assert found.mean_standard_error == pytest.approx(0.25)
    assert found.dominates
