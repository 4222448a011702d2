"""Comparisons, verdicts and figures of `cells.py`, from `results/saes.json` alone."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from recipes.common.claims import Claim, claims_table, verdict, write_claims
from recipes.common.comparisons import (
    L0_TOLERANCE,
    Mean,
    Row,
    matched_differences,
    means_over_seeds,
    met_targets,
    select,
)
from recipes.sagsae.training import SAES
from sae_lens_bipolar.evaluation.pareto import Comparison, Curve, compare, geometric_mean_ratio
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.reports import drawing, figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Row]

OURS, THEIRS = "SA-GSAE H", "Gated 2H"
DEAD_RATIOS = (  # hookpoint, what the paper's range starts at, its range
    ("mlp_out", 100, "100 to 500 times"),
    ("attn_out", 2, "2 to 4 times"),
    ("resid_post", 2, "100 to 500 times on Pythia-1B, 2 to 4 times on SmolLM3-3B"),
)
FIGURES = {
    "dead_fraction": "dead fraction",
    "loss_recovered": "loss recovered",
    "r2": "R²",
}


def report(output: Path) -> str:
    """Write what follows from `results/saes.json`; return the claims as a table."""
    rows = read_json(output / SAES)
    compared = comparisons(rows)
    write_json(output / "results/comparisons.json", compared)
    verdicts = claims(rows, compared)
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


def claims(rows: Rows, compared: Rows) -> list[Claim]:
    """The paper's claims about its cells, each tested on the rows and comparisons."""
    measured = [c for c in compared if c["r2"]]
    tested = partial(
        Claim,
        seeds=min((c["r2"]["n_seeds"] for c in measured), default=0),
        tokens=max((row["n_train_tokens"] for row in rows), default=0),
    )
    below = [c for c in measured if not c["r2"]["strictly_above"]]
    return [
        *(tested(**found) for found in _reconstruction(measured, below)),
        tested(**_dead_difference(below)),
        *(tested(**_dead_ratio(compared, *expected)) for expected in DEAD_RATIOS),
        tested(**_two_sided(compared)),
        full_width(rows),
        meets_targets(rows),
    ]


def _reconstruction(measured: Rows, below: Rows) -> Iterable[dict[str, Any]]:
    above = len(measured) - len(below)
    gaps = [
        f"{_where(c)} {_mean(c['r2'])}, from {c['r2']['min_difference']:+.3f} to "
        f"{c['r2']['max_difference']:+.3f} (L0 {c['r2']['l0_overlap'][0]:.1f} to "
        f"{c['r2']['l0_overlap'][1]:.1f})"
        for c in measured
    ]
    yield {
        "claim": f"{OURS} is strictly above {THEIRS} in R² over the whole measured L0 overlap in "
        "half of the cells or more",
        "paper": "3 of 6: both MLP outputs, the residual stream of Pythia-1B",
        "ours": f"{above} of {len(measured)}; difference in R²: {'; '.join(gaps)}",
        "verdict": verdict(2 * above >= len(measured) if measured else None),
    }
    yield {
        "claim": f"where it is not above, {OURS} is within 0.025 R² of {THEIRS}",
        "paper": "largest gap -0.008",
        "ours": "; ".join(f"{_where(c)} {c['r2']['min_difference']:+.3f}" for c in below),
        "verdict": verdict(
            all(c["r2"]["min_difference"] >= -0.025 for c in below) if below else None
        ),
    }


def _dead_difference(below: Rows) -> dict[str, Any]:
    lower = [(_where(c), c["dead_fraction"]) for c in below]
    return {
        "claim": f"where it is not above, the dead fraction of {OURS} is lower than that of "
        f"{THEIRS} by 0.35 or more",
        "paper": "0.35 to 0.62 lower",
        "ours": "; ".join(f"{where} {_mean(found)}" for where, found in lower),
        "verdict": verdict(
            all(found["mean_difference"] <= -0.35 for _, found in lower) if lower else None
        ),
    }


def _dead_ratio(compared: Rows, hookpoint: str, factor: float, paper: str) -> dict[str, Any]:
    ratios = [(c["model"], c["dead_fraction_ratio"]) for c in compared if _is_at(c, hookpoint)]
    return {
        "claim": f"{hookpoint}: the dead fraction of {THEIRS} is {factor:g} times that of {OURS} "
        "or more, as a geometric mean over the sweep",
        "paper": paper,
        "ours": "; ".join(
            f"{model}: {found['value']:.2f} times ({found['n_floored']} of {found['n']} points at "
            "the floor of half a latent)"
            for model, found in ratios
        ),
        "verdict": verdict(
            all(found["value"] >= factor for _, found in ratios) if ratios else None
        ),
    }


def _two_sided(compared: Rows) -> dict[str, Any]:
    mlp = [c for c in compared if _is_at(c, "mlp_out")]
    return {
        "claim": f"most live latents of {OURS} on MLP outputs fire on both sides",
        "paper": "most",
        "ours": "; ".join(f"{_where(c)} {c['bipolar_fraction']['mean']:.1%}" for c in compared),
        "verdict": verdict(all(c["bipolar_fraction"]["min"] > 0.5 for c in mlp) if mlp else None),
    }


def full_width(rows: Rows) -> Claim:
    """Whether SA-GSAE loses reconstruction at full width in the residual stream."""
    wide, half = (
        select(rows, label=label, hookpoint="resid_post") for label in ("SA-GSAE 2H", OURS)
    )
    gaps = matched_differences(wide, half, "r2", by=("l0_target", "model", "seed"))
    return Claim(
        "SA-GSAE at 2H collapses in the residual stream: at some L0 its R² is lower than at H by "
        "0.1 or more",
        "on SmolLM3-3B",
        "; ".join(f"L0 {target}: {gap:+.3f}" for (target, *_), gap in gaps.items()),
        seeds=len({row["seed"] for row in rows if row["label"] == "SA-GSAE 2H"}),
        tokens=max((row["n_train_tokens"] for row in rows), default=0),
        verdict=verdict(min(gaps.values()) <= -0.1 if gaps else None),
    )


def meets_targets(rows: Rows) -> Claim:
    """Whether every SAE has the L0 it was asked for, on held-out tokens."""
    found = met_targets(rows)
    furthest = f"furthest off {found.name}, by {found.furthest:.1%}"
    return Claim(
        f"every SAE meets its L0 target within {L0_TOLERANCE:.0%} on held-out tokens",
        "not given: our condition of a fair comparison",
        f"{found.met} of {found.n}; {furthest}" if rows else "",
        seeds=len({row["seed"] for row in rows}),
        tokens=max((row["n_train_tokens"] for row in rows), default=0),
        verdict=verdict(found.met == found.n if rows else None),
    )


def _where(c: Row) -> str:
    return f"{c['hookpoint']} of {c['model']}:"


def _is_at(c: Row, hookpoint: str) -> bool:
    return c["hookpoint"] == hookpoint


def _mean(found: Row) -> str:
    return Mean(found["mean_difference"], found["mean_standard_error"]).shown(3)


def groups(rows: Rows) -> Iterable[tuple[str, str]]:
    """(model, hookpoint) pairs in the order of the rows."""
    return dict.fromkeys((row["model"], row["hookpoint"]) for row in rows)


def by_seed(rows: Rows, metric: str) -> dict[int, Curve]:
    """A curve of `metric` against measured L0 for each seed."""
    return {
        seed: [(row["l0"], row[metric]) for row in rows if row["seed"] == seed]
        for seed in sorted({row["seed"] for row in rows})
    }


def curves(rows: Rows) -> list[dict[str, Any]]:
    """Mean and standard error over seeds of L0 and each metric, one row per L0 target."""
    keys = ("model", "hookpoint", "label", "l0_target")
    return means_over_seeds(rows, keys, ("l0", *FIGURES, "bipolar_fraction"))


def draw(points: Rows, metric: str, name: str) -> figures.Plot:
    """`metric` against log L0: hookpoints in columns, models in rows, mean and s.e. of seeds."""
    models = list(dict.fromkeys(p["model"] for p in points))
    hookpoints = list(dict.fromkeys(p["hookpoint"] for p in points))
    labels = list(dict.fromkeys(p["label"] for p in points))
    shown = []
    with drawing.style():
        width, height = 3.3 * len(hookpoints) + 0.4, 2.6 * len(models) + 0.7
        figure, panels = drawing.panels(len(models), len(hookpoints), width, height)
        for i, axes in enumerate(panels):
            model, hookpoint = models[i // len(hookpoints)], hookpoints[i % len(hookpoints)]
            here = [p for p in points if (p["model"], p["hookpoint"]) == (model, hookpoint)]
            _panel(axes, here, metric, labels)
            axes.set_title(f"{hookpoint}, {drawing.plain(model)}")
            axes.set_xlabel("L0")
            if i % len(hookpoints) == 0:
                axes.set_ylabel(name)
            shown += here
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(labels), fontsize=8)
    header = ("model", "hookpoint", "label", "l0_target", "n_seeds", "l0", "l0_se")
    header += (metric, f"{metric}_se")
    alt = f"{name} against measured L0, one panel per hookpoint and model, one line per kind of SAE"
    return figures.Plot(metric, alt, figure, header, [tuple(p[k] for k in header) for p in shown])


def _panel(axes: "Axes", points: Rows, metric: str, labels: Sequence[str]) -> None:
    for label in labels:
        line = sorted((p for p in points if p["label"] == label), key=lambda p: p["l0"])
        i = labels.index(label)
        axes.errorbar(
            [p["l0"] for p in line],
            [p[metric] for p in line],
            xerr=[p["l0_se"] or 0 for p in line],
            yerr=[p[f"{metric}_se"] or 0 for p in line],
            color=drawing.colour(i),
            linestyle=drawing.DASHES[i % len(drawing.DASHES)],
            marker=drawing.MARKERS[i],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=label,
        )
    drawing.l0_axis(axes, [p["l0"] for p in points])
    if min(p["l0"] for p in points) > 0:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
