"""Comparisons and verdicts of `cells.py`, from `results/saes.json` alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.common.claims import HOLDS, Claim, claims_table, write_claims
from recipes.common.comparisons import (
    L0_TOLERANCE,
    Row,
    matched_differences,
    select,
)
from recipes.common.verdicts import (
    Estimate,
    Tested,
    decide_all,
    decide_any,
    decide_half,
    judged,
    over_seeds,
    targets_claim,
)
from recipes.sagsae.cells_figures import FIGURES, curves, draw
from recipes.sagsae.training import SAES
from sae_lens_bipolar.evaluation.pareto import Comparison, Curve, compare, geometric_mean_ratio
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CONFIG_FILE
from sae_lens_bipolar.reports import figures

Rows = Sequence[Row]
Judged = tuple[str, str, str, list[Tested], str]  # claim, paper, ours, estimates, verdict

OURS, THEIRS = "SA-GSAE H", "Gated 2H"
DEAD_RATIOS = (  # hookpoint, what the paper's range starts at, its range
    ("mlp_out", 100, "100 to 500 times"),
    ("attn_out", 2, "2 to 4 times"),
    ("resid_post", 2, "100 to 500 times on Pythia-1B, 2 to 4 times on SmolLM3-3B"),
)


def report(output: Path) -> str:
    """Write what follows from `results/saes.json`; return the claims as a table."""
    rows = read_json(output / SAES)
    compared = comparisons(rows)
    write_json(output / "results/comparisons.json", compared)
    verdicts = claims(rows, compared, load_yaml(output / CONFIG_FILE).get("margins"))
    write_claims(output, verdicts)
    points = curves(rows)
    for metric, name in FIGURES.items():
        figures.save(draw(points, metric, name), output / "report")
    return claims_table(verdicts)


def comparisons(rows: Rows) -> list[dict[str, Any]]:
    """SA-GSAE at H against Gated at 2H, one row per model and hookpoint."""
    found = []
    for model, hookpoint in groups(rows):
        where = {"model": model, "hookpoint": hookpoint}
        ours, theirs = (select(rows, **where, label=label) for label in (OURS, THEIRS))
        if not ours or not theirs:
            continue
        row: dict[str, Any] = {**where}
        row |= {"ours": OURS, "theirs": THEIRS, "n_eval_tokens": ours[0]["n_eval_tokens"]}
        row |= {m: described(compare(by_seed(ours, m), by_seed(theirs, m))) for m in FIGURES}
        row["dead_fraction_ratio"] = dead_ratio(ours, theirs)
        two_sided = [r["bipolar_fraction"] for r in ours]
        row["bipolar_fraction"] = {"mean": fmean(two_sided), "min": min(two_sided)}
        found.append(row)
    return found


def described(comparison: Comparison | None) -> dict[str, Any] | None:
    """What a comparison says, for `comparisons.json`; None where the L0 ranges do not meet."""
    if comparison is None:
        return None
    return {
        "l0_overlap": [comparison.low, comparison.high],
        "l0": comparison.l0,
        "difference": comparison.difference,
        "standard_error": comparison.standard_error,
        "mean_difference": comparison.mean_difference,
        "mean_standard_error": comparison.mean_standard_error,
        "min_difference": min(comparison.difference),
        "max_difference": max(comparison.difference),
        "strictly_above": comparison.dominates,
        "n_seeds": comparison.n_seeds,
    }


def dead_ratio(ours: Rows, theirs: Rows) -> dict[str, Any]:
    """Geometric mean over the L0 sweep of (theirs / ours), dead fractions averaged over seeds.

    A dead fraction of zero stands at half a latent in all SAEs of that point.
    """
    targets = sorted({r["l0_target"] for r in ours} & {r["l0_target"] for r in theirs})
    dead, floors = [], []
    for target in targets:
        sides = [[r for r in side if r["l0_target"] == target] for side in (theirs, ours)]
        dead.append([fmean(r["dead_fraction"] for r in side) for side in sides])
        floors.append(tuple(0.5 / sum(r["d_sae"] for r in side) for side in sides))
    mean = geometric_mean_ratio([d[0] for d in dead], [d[1] for d in dead], floors)
    return {**mean._asdict(), "l0_targets": targets, "theirs_and_ours": dead, "floors": floors}


def claims(rows: Rows, compared: Rows, margins: Mapping[str, float] | None = None) -> list[Claim]:
    """The paper's claims about its cells, each tested on the rows and comparisons.

    Args:
        rows: of `results/saes.json`.
        compared: of `comparisons`.
        margins: "r2": what a mean difference must exceed to be one; 0 if there is none. "l0": the
            tolerance of L0 targets.
    """
    margins = margins or {}
    margin = margins.get("r2", 0.0)
    measured = [c for c in compared if c["r2"]]
    tested = partial(
        judged,
        seeds=min((c["r2"]["n_seeds"] for c in measured), default=0),
        tokens=max((row["n_train_tokens"] for row in rows), default=0),
    )
    below = [c for c in measured if decide_all([(_estimate(c["r2"]), margin)]) != HOLDS]
    return [
        *(tested(*found) for found in _reconstruction(measured, below, margin)),
        tested(*_dead_difference(below)),
        *(tested(*_dead_ratio(rows, compared, *expected)) for expected in DEAD_RATIOS),
        tested(*_two_sided(rows, compared)),
        full_width(rows),
        targets_claim(rows, margins.get("l0", L0_TOLERANCE)),
    ]


def _estimate(found: Row) -> Estimate:
    """The mean difference over the L0 overlap, as `described` holds it."""
    return Estimate(found["mean_difference"], found["mean_standard_error"], found["n_seeds"])


def _reconstruction(measured: Rows, below: Rows, margin: float) -> Iterable[Judged]:
    above = sum(c["r2"]["strictly_above"] for c in measured)
    gaps = [
        f"{_where(c)} {_estimate(c['r2'])}, from {c['r2']['min_difference']:+.3f} to "
        f"{c['r2']['max_difference']:+.3f} (L0 {c['r2']['l0_overlap'][0]:.1f} to "
        f"{c['r2']['l0_overlap'][1]:.1f})"
        for c in measured
    ]
    tested: list[Tested] = [(_estimate(c["r2"]), margin) for c in measured]
    yield (
        f"{OURS} is above {THEIRS} in R² over the measured L0 overlap, as a mean over it, in half "
        "of the cells or more",
        "strictly above in 3 of 6: both MLP outputs, the residual stream of Pythia-1B",
        f"strictly above in {above} of {len(measured)}; difference in R²: {'; '.join(gaps)}",
        tested,
        decide_half(tested),
    )
    near: list[Tested] = [(_estimate(c["r2"]), -0.025) for c in below]
    yield (
        f"where it is not above, {OURS} is within 0.025 R² of {THEIRS}, as a mean over the overlap",
        "largest gap -0.008",
        "; ".join(f"{_where(c)} {_estimate(c['r2'])}" for c in below),
        near,
        decide_all(near),
    )


def _dead_difference(below: Rows) -> Judged:
    lower = [(_where(c), _estimate(c["dead_fraction"])) for c in below]
    tested: list[Tested] = [(-found, 0.35) for _, found in lower]
    return (
        f"where it is not above, the dead fraction of {OURS} is lower than that of {THEIRS} by "
        "0.35 or more",
        "0.35 to 0.62 lower",
        "; ".join(f"{where} {found}" for where, found in lower),
        tested,
        decide_all(tested),
    )


def _dead_ratio(rows: Rows, compared: Rows, hookpoint: str, factor: float, paper: str) -> Judged:
    here = [c for c in compared if _is_at(c, hookpoint)]
    logs = [_log_dead_ratio(rows, c["model"], hookpoint) for c in here]
    tested: list[Tested] = [(log, math.log(factor)) for log in logs]
    return (
        f"{hookpoint}: the dead fraction of {THEIRS} is {factor:g} times that of {OURS} or more, "
        "as a geometric mean over the sweep (the estimate is its logarithm)",
        paper,
        "; ".join(
            f"{c['model']}: {math.exp(log.mean):.2f} times by the mean of the seeds' logarithms, "
            f"{c['dead_fraction_ratio']['value']:.2f} by the seeds' mean dead fractions "
            f"({c['dead_fraction_ratio']['n_floored']} of {c['dead_fraction_ratio']['n']} points "
            "at the floor of half a latent)"
            for c, log in zip(here, logs, strict=True)
        ),
        tested,
        decide_all(tested),
    )


def _log_dead_ratio(rows: Rows, model: str, hookpoint: str) -> Estimate:
    """Logarithm of the ratio of dead fractions, one per seed that both have."""
    sides = [select(rows, model=model, hookpoint=hookpoint, label=x) for x in (OURS, THEIRS)]
    seeds = sorted(set.intersection(*({row["seed"] for row in side} for side in sides)))
    ratios = [dead_ratio(*(select(side, seed=seed) for side in sides)) for seed in seeds]
    return over_seeds([math.log(ratio["value"]) for ratio in ratios])


def _two_sided(rows: Rows, compared: Rows) -> Judged:
    tested: list[Tested] = []
    for c in (c for c in compared if _is_at(c, "mlp_out")):
        ours = select(rows, model=c["model"], hookpoint="mlp_out", label=OURS)
        for target in dict.fromkeys(row["l0_target"] for row in ours):
            shares = [row["bipolar_fraction"] for row in select(ours, l0_target=target)]
            tested.append((over_seeds(shares), 0.5))
    return (
        f"most live latents of {OURS} on MLP outputs fire on both sides",
        "most",
        "; ".join(f"{_where(c)} {c['bipolar_fraction']['mean']:.1%}" for c in compared),
        tested,
        decide_all(tested),
    )


def full_width(rows: Rows) -> Claim:
    """Whether SA-GSAE loses reconstruction at full width in the residual stream."""
    wide, half = (
        select(rows, label=label, hookpoint="resid_post") for label in ("SA-GSAE 2H", OURS)
    )
    gaps = matched_differences(half, wide, "r2", by=("l0_target", "model", "seed"))
    losses: dict[int, list[float]] = {}
    for (target, *_), loss in gaps.items():
        losses.setdefault(target, []).append(loss)
    estimates = {target: over_seeds(values) for target, values in losses.items()}
    tested: list[Tested] = [(one, 0.1) for one in estimates.values()]
    return judged(
        "SA-GSAE at 2H collapses in the residual stream: at some L0 its R² is lower than at H by "
        "0.1 or more",
        "on SmolLM3-3B",
        "; ".join(f"L0 {target}: lower by {one}" for target, one in estimates.items()),
        tested,
        decide_any(tested),
        seeds=len({seed for *_, seed in gaps}),
        tokens=max((row["n_train_tokens"] for row in rows), default=0),
    )


def _where(c: Row) -> str:
    return f"{c['hookpoint']} of {c['model']}:"


def _is_at(c: Row, hookpoint: str) -> bool:
    return c["hookpoint"] == hookpoint


def groups(rows: Rows) -> Iterable[tuple[str, str]]:
    """(model, hookpoint) pairs in the order of the rows."""
    return dict.fromkeys((row["model"], row["hookpoint"]) for row in rows)


def by_seed(rows: Rows, metric: str) -> dict[int, Curve]:
    """A curve of `metric` against measured L0 for each seed."""
    return {
        seed: [(row["l0"], row[metric]) for row in rows if row["seed"] == seed]
        for seed in sorted({row["seed"] for row in rows})
    }
