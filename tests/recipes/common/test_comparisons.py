"""Seed statistics by hand: matched pairs, means with errors, bootstrap, and L0 targets."""

import pytest

from recipes.common.comparisons import (
    L0_TOLERANCE,
    bootstrap,
    matched_differences,
    mean_and_error,
    means_over_seeds,
    met_targets,
    select,
)
from sae_lens_bipolar.errors import DataError

ROWS = [
    {"kind": kind, "seed": seed, "hook": hook, "r2": value + seed}
    for kind, value in (("a", 0.5), ("b", 0.2))
    for hook in ("mlp", "attn")
    for seed in (1, 0)
]


def test_rows_are_matched_seed_by_seed() -> None:
    ours, theirs = select(ROWS, kind="a", hook="mlp"), select(ROWS, kind="b", hook="mlp")
    found = matched_differences(ours, theirs, "r2")
    assert list(found) == [(0,), (1,)]  # in order, whatever the rows' order
    assert list(found.values()) == pytest.approx([0.3, 0.3])
    assert list(matched_differences(ours[:1], theirs, "r2")) == [(1,)]
    assert matched_differences(ours, [], "r2") == {}


def test_rows_are_matched_by_more_than_the_seed() -> None:
    found = matched_differences(
        select(ROWS, kind="a"), select(ROWS, kind="b"), "r2", by=("hook", "seed")
    )
    assert list(found) == [("attn", 0), ("attn", 1), ("mlp", 0), ("mlp", 1)]


def test_mean_and_standard_error() -> None:
    found = mean_and_error([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 1 / 3**0.5))  # deviation 1, of three
    assert found.shown(2) == "+2.00 ± 0.58"
    assert mean_and_error([0.5]) == (0.5, None)
    assert str(mean_and_error([0.5])) == "+0.5000"


def test_means_over_seeds_by_point() -> None:
    found = means_over_seeds(ROWS, ("kind", "hook"), ("r2",))
    assert [(row["kind"], row["hook"], row["n_seeds"]) for row in found] == [
        (kind, hook, 2) for kind in "ab" for hook in ("mlp", "attn")
    ]
    assert found[0]["r2"] == pytest.approx(1.0)
    assert found[0]["r2_se"] == pytest.approx(0.5)
    assert means_over_seeds(ROWS[:1], ("kind",), ("r2",))[0]["r2_se"] is None


def test_bootstrap() -> None:
    assert bootstrap([0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25)
    one = bootstrap([0.0, 1.0])
    assert one == (0.5, 0.0, 1.0)  # means of two draws: 0, 1/2, 1 with weights 1/4, 1/2, 1/4
    assert bootstrap([0.0, 1.0]) == one
    with pytest.raises(DataError, match="at least one value"):
        bootstrap([])


def test_targets_are_met_within_the_tolerance() -> None:
    rows = [
        {"name": "exact", "l0": 20.0, "l0_target": 20},
        {"name": "near", "l0": 20 * (1 + 0.9 * L0_TOLERANCE), "l0_target": 20},
        {"name": "far", "l0": 20 * (1 - 1.1 * L0_TOLERANCE), "l0_target": 20},
    ]
    found = met_targets(rows)
    assert (found.met, found.n, found.name) == (2, 3, "far")
    assert found.furthest == pytest.approx(1.1 * L0_TOLERANCE)
    assert met_targets([]) == (0, 0, 0.0, "")
