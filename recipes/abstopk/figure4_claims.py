"""Comparisons and verdicts of `figure4.py`, from the rows of `results/summary.json` alone.

The three methods are compared seed by seed. A difference is that of a rival and AbsTopK, positive
where AbsTopK is the better: relative to the rival's error, in loss recovered as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from recipes.common.claims import NOT_RUN, Claim
from recipes.common.verdicts import (
    Estimate,
    Tested,
    decide,
    decide_all,
    judged,
    over_seeds,
    targets_claim,
)

FROM_MEAN, FROM_ZERO = "mean", "zeros"  # where b_dec starts
RIVALS = {"topk": "TopK", "jumprelu": "JumpReLU"}
ALIVE = 0.8  # share of latents that shall be alive

METHODS = {"jumprelu": "JumpReLU", "topk": "TopK", "abstopk": "AbsTopK"}
Row = Mapping[str, Any]


class Measure(NamedTuple):
    """One panel."""

    key: str  # in the rows of the summary
    title: str
    lower_is_better: bool

    def better(self, mine: float, other: float) -> bool:
        return mine < other if self.lower_is_better else mine > other


# Training MSE is SAELens's: summed over d_in, of activations scaled to a mean norm of sqrt(d_in).
MEASURES = (
    Measure("train_mse", "training MSE, lower is better", True),
    Measure("nmse", "nMSE, lower is better", True),
    Measure("loss_recovered", "loss recovered, higher is better", False),
)


class Comparison(NamedTuple):
    """The three methods at one k of one layer, by one measure."""

    model: str
    layer: int
    k: int
    measure: Measure
    abstopk: float
    topk: float
    jumprelu: float | None  # of target k, or interpolated at L0 = k; None outside the L0 it reached
    seed: int | None = None  # None: means over seeds


def comparisons(rows: Sequence[Row], start: str = FROM_MEAN) -> list[Comparison]:
    """Every seed, k of every layer, and measure, of the SAEs that started as `start` says."""
    found = []
    rows = [row for row in rows if row.get("start", FROM_MEAN) == start]
    for (model, layer), of_layer in by_layer(rows).items():
        for seed in sorted({row["seed"] for row in of_layer}):
            group = [row for row in of_layer if row["seed"] == seed]
            for measure in MEASURES:
                at_k = {
                    method: {row["k"]: row[measure.key] for row in group if row["method"] == method}
                    for method in METHODS
                }
                curve = [row for row in group if row["method"] == "jumprelu"]
                jumprelu = interpolator(curve, measure)
                for k, value in sorted(at_k["abstopk"].items()):
                    other = at_k["jumprelu"].get(k)
                    other = jumprelu(k) if other is None else other
                    here = (model, layer, k, measure, value, at_k["topk"][k], other, seed)
                    found.append(Comparison(*here))
    return found


def averaged(compared: Sequence[Comparison]) -> list[Comparison]:
    """The same as means over seeds; JumpReLU's only where every seed has it."""
    places: dict[tuple[Any, ...], list[Comparison]] = {}
    for one in compared:
        places.setdefault((one.model, one.layer, one.measure.key, one.k), []).append(one)
    found = []
    for group in places.values():
        others = [one.jumprelu for one in group if one.jumprelu is not None]
        found.append(
            group[0]._replace(
                abstopk=fmean(one.abstopk for one in group),
                topk=fmean(one.topk for one in group),
                jumprelu=fmean(others) if len(others) == len(group) else None,
                seed=None,
            )
        )
    return found


def interpolator(rows: Sequence[Row], measure: Measure) -> Callable[[float], float | None]:
    """The measure at an L0, linear in log L0 between measured points; None beyond them."""
    points = sorted((row["l0"], row[measure.key]) for row in rows if row["l0"] > 0)

    def at(l0: float) -> float | None:
        if not points or not points[0][0] <= l0 <= points[-1][0]:
            return None
        xs, ys = zip(*points, strict=True)
        return float(np.interp(np.log(l0), np.log(xs), ys))

    return at


def by_layer(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """Rows by model and layer, in their order."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["layer"]), []).append(row)
    return groups


def claims(rows: Sequence[Row], margins: Mapping[str, float]) -> list[Claim]:
    """The paper's ranking by each measure, beside ours; with margins what makes it fair, too.

    Args:
        rows: of `results/summary.json`.
        margins: by the key of a measure, what a difference must exceed; 0 if there is none.
            "l0": the tolerance of L0 targets.
    """
    n = {
        "seeds": len({row["seed"] for row in rows}),
        "tokens": min(row["n_train_tokens"] for row in rows),
    }
    compared = comparisons(rows)
    found = [_ranking(compared, measure, margins, n) for measure in MEASURES]
    if not margins:
        return found
    return [
        *found,
        *_starts(rows, margins, n),
        _alive(rows, n),
        targets_claim(*_targets(rows, margins)),
    ]


def _ranking(
    compared: Sequence[Comparison], measure: Measure, margins: Mapping[str, float], n: Any
) -> Claim:
    mine = [one for one in compared if one.measure is measure]
    shown = averaged(mine)
    against = [one for one in shown if one.jumprelu is not None]
    over_topk = sum(measure.better(one.abstopk, one.topk) for one in shown)
    over_jumprelu = sum(measure.better(one.abstopk, one.jumprelu or 0.0) for one in against)
    margin = margins.get(measure.key, 0.0)
    gains = {label: gain(mine, rival) for rival, label in RIVALS.items()}
    tested: list[Tested] = [(one, margin) for one in gains.values() if one is not None]
    name = measure.title.split(",")[0]
    described = "; ".join(f"over {label} {one}" for label, one in gains.items() if one is not None)
    return judged(
        f"AbsTopK has the best {name} of the three, as a mean over sparsities",
        "curves without numbers (Figures 2 and 4)",
        f"better than TopK at {over_topk} of {len(shown)} k; better than JumpReLU at "
        f"{over_jumprelu} of the {len(against)} k that its sweep reaches. Gain {described}",
        tested,
        decide_all(tested) if mine else NOT_RUN,
        **n,
    )


def gain(compared: Sequence[Comparison], rival: str) -> Estimate | None:
    """How much better AbsTopK is than a rival by one measure: mean over layers and k, by seed."""
    values: dict[int | None, list[float]] = {}
    for one in compared:
        other = getattr(one, rival)
        if other is None:
            continue
        lower = one.measure.lower_is_better
        value = (other - one.abstopk) / other if lower else one.abstopk - other
        values.setdefault(one.seed, []).append(value)
    return over_seeds([fmean(of_seed) for of_seed in values.values()]) if values else None


def _starts(rows: Sequence[Row], margins: Mapping[str, float], n: Any) -> list[Claim]:
    """What a start of b_dec at 0 does to each method, and to their order."""
    margin = margins.get("nmse", 0.0)
    found = []
    for method, label in (("abstopk", "AbsTopK"), ("topk", "TopK")):
        cost = start_cost(rows, method)
        dead = {start: _dead(rows, method, start) for start in (FROM_ZERO, FROM_MEAN)}
        shown = f"nMSE {cost}; dead {dead[FROM_ZERO]:.1%} and {dead[FROM_MEAN]:.1%}" if cost else ""
        found.append(
            judged(
                f"{label} from b_dec = 0 has a higher nMSE than from the data's mean (relative)",
                "not given: the paper does not say where it starts",
                shown,
                [(cost, margin)] if cost else [],
                decide(cost, margin),
                **n,
            )
        )
    of_nmse = [one for one in comparisons(rows, FROM_ZERO) if one.measure.key == "nmse"]
    from_zero = gain(of_nmse, "topk")
    found.append(
        judged(
            "from b_dec = 0 AbsTopK has a lower nMSE than TopK, too (relative)",
            "not given",
            str(from_zero or ""),
            [(from_zero, margin)] if from_zero else [],
            decide(from_zero, margin),
            **n,
        )
    )
    return found


def start_cost(rows: Sequence[Row], method: str) -> Estimate | None:
    """Relative rise of nMSE from a start at 0, seed by seed, mean over the k of both starts."""
    values: dict[int, list[float]] = {}
    kept = {
        start: {
            (row["seed"], row["layer"], row["k"]): row["nmse"]
            for row in rows
            if row["method"] == method and row.get("start", FROM_MEAN) == start
        }
        for start in (FROM_ZERO, FROM_MEAN)
    }
    for key, zero in kept[FROM_ZERO].items():
        if key in kept[FROM_MEAN]:
            values.setdefault(key[0], []).append(zero / kept[FROM_MEAN][key] - 1)
    return over_seeds([fmean(one) for one in values.values()]) if values else None


def _dead(rows: Sequence[Row], method: str, start: str) -> float:
    found = [
        row["dead_fraction"]
        for row in rows
        if row["method"] == method and row.get("start", FROM_MEAN) == start
    ]
    return fmean(found) if found else 0.0


def _alive(rows: Sequence[Row], n: Any) -> Claim:
    """Whether each method keeps its latents alive, which a fair comparison needs."""
    alive: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row.get("start", FROM_MEAN) == FROM_MEAN:
            of_method = alive.setdefault(METHODS[row["method"]], {})
            of_method.setdefault(row["seed"], []).append(1 - row["dead_fraction"])
    estimates = {
        label: over_seeds([fmean(one) for one in seeds.values()]) for label, seeds in alive.items()
    }
    tested: list[Tested] = [(one, ALIVE) for one in estimates.values()]
    return judged(
        f"every method keeps {ALIVE:.0%} of its latents alive or more",
        "not given: our condition of a fair comparison",
        "; ".join(f"{label} {one.mean:.1%}" for label, one in estimates.items()),
        tested,
        decide_all(tested),
        **n,
    )


def _targets(rows: Sequence[Row], margins: Mapping[str, float]) -> tuple[Sequence[Row], float]:
    """The rows with an L0 target, which k is, and the tolerance."""
    wanted = [{**row, "l0_target": row["k"]} for row in rows if row.get("k") is not None]
    return wanted, margins.get("l0", 0.1)
