"""Means, verdicts and the figure of `sagsae_ablations.py`, from `results/saes.json` alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from recipes.common.claims import Claim, claims_table, verdict, write_claims
from sae_lens_bipolar.evaluation.pareto import standard_error
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.reports import drawing, figures

Rows = Sequence[Mapping[str, Any]]

RECOMMENDED, FULL_WIDTH = "recommended", "2H: recommended"
SMALL, LARGE = "2H: small thresholds", "2H: large thresholds, no resets"
METRICS = {
    "r2": "R²",
    "loss_recovered": "loss recovered",
    "dead_fraction": "dead fraction",
    "l0": "L0",
}


def write_report(output: Path) -> str:
    """Write means, claims and the figure beside the rows; return the claims as a table."""
    rows = read_json(output / "results/saes.json")
    means = variants(rows)
    write_json(output / "results/variants.json", means)
    verdicts = claims(rows)
    write_claims(output, verdicts)
    figures.save(draw(means), output / "report")
    return claims_table(verdicts)


def variants(rows: Rows) -> list[dict[str, Any]]:
    """Mean and standard error over seeds, a row a model, hookpoint and variant."""
    found = []
    keys = ("model", "hookpoint", "label")
    for point in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        same = [row for row in rows if tuple(row[key] for key in keys) == point]
        mean: dict[str, Any] = {**dict(zip(keys, point, strict=True)), "n_seeds": len(same)}
        for metric in (*METRICS, "bipolar_fraction", "nmse"):
            error = standard_error([row[metric] for row in same])
            mean[metric] = fmean(row[metric] for row in same)
            mean[f"{metric}_se"] = None if error is None else float(error)
        found.append(mean)
    return found


def claims(rows: Rows) -> list[Claim]:
    """The paper's claims about its ablations, each tested on the rows, seed by seed."""
    n = {
        "seeds": len({row["seed"] for row in rows}),
        "tokens": max((row["n_train_tokens"] for row in rows), default=0),
    }
    untied = gap(rows, "symmetry none", RECOMMENDED, "r2")
    tied_gain = gap(rows, "symmetry gain", RECOMMENDED, "r2")
    both = f"untied less tied {untied}; gain tied less all tied {tied_gain}"
    return [
        Claim(**_without_auxiliary(rows), **n),
        Claim(
            "tying thresholds, gains and biases of the two sides changes R² by 0.0015 or less",
            "|ΔR²| = 0.0015",
            both if untied and tied_gain else "",
            **n,
            verdict=verdict(abs(untied.mean) <= 0.0015 if untied else None),
        ),
        _gap_claim(
            "the two-sided gate is load-bearing: one-sided, R² is lower by 0.01 or more",
            "load-bearing",
            gap(rows, "one-sided gate", RECOMMENDED, "r2"),
            lambda mean: mean <= -0.01,
            n,
        ),
        _gap_claim(
            "at full width the recommended settings do not collapse: R² at 2H is not lower than at "
            "H by 0.01 or more",
            "collapse at full width on the residual stream of SmolLM3-3B; settings recommended "
            "against it",
            gap(rows, FULL_WIDTH, RECOMMENDED, "r2"),
            lambda mean: mean > -0.01,
            n,
        ),
        _gap_claim(
            "resets keep latents alive at full width: from small thresholds, the dead fraction is "
            "lower with them than without",
            "recommended",
            gap(rows, SMALL, f"{SMALL}, no resets", "dead_fraction"),
            lambda mean: mean < 0,
            n,
        ),
        _gap_claim(
            "large thresholds without resets collapse at full width: R² is lower by 0.1 or more "
            "than from small ones with resets",
            "small thresholds and resets recommended",
            gap(rows, LARGE, SMALL, "r2"),
            lambda mean: mean <= -0.1,
            n,
        ),
        _gap_claim(
            "letting the auxiliary term train the decoder costs R²",
            "not given: users of SAELens's gated class report it",
            gap(rows, "auxiliary loss trains the decoder", RECOMMENDED, "r2"),
            lambda mean: mean < 0,
            n,
        ),
    ]


class Gap(NamedTuple):
    """A mean difference between two variants."""

    mean: float
    error: float | None  # standard error over seeds; None with one

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" + ("" if self.error is None else f" ± {self.error:.4f}")


def gap(rows: Rows, label: str, reference: str, metric: str) -> Gap | None:
    """Mean of `label - reference`, matched by model, hookpoint and seed; None without a pair."""
    differences = [
        a[metric] - b[metric]
        for a in rows
        for b in rows
        if (a["label"], b["label"]) == (label, reference)
        and all(a[key] == b[key] for key in ("model", "hookpoint", "seed"))
    ]
    if not differences:
        return None
    error = standard_error(differences)
    return Gap(fmean(differences), None if error is None else float(error))


def _gap_claim(
    claim: str, paper: str, found: Gap | None, holds: Callable[[float], bool], n: dict[str, int]
) -> Claim:
    outcome = verdict(holds(found.mean) if found else None)
    return Claim(claim, paper, str(found or ""), **n, verdict=outcome)


def _without_auxiliary(rows: Rows) -> dict[str, str]:
    bare = [row for row in rows if row["label"] == "no auxiliary loss"]
    ours, holds = "", None
    if bare:
        mean = {key: fmean(row[key] for row in bare) for key in METRICS}
        ours = f"loss recovered {mean['loss_recovered']:.3f}, {mean['dead_fraction']:.1%} dead, "
        ours += f"R² {mean['r2']:.3f}, L0 {mean['l0']:.1f}"
        holds = mean["loss_recovered"] < 0.5 and mean["dead_fraction"] > 0.9
    return {
        "claim": "without the auxiliary loss it collapses: loss recovered below 0.5 and more than "
        "90% of latents dead",
        "paper": "loss recovered 0.27, 98% dead",
        "ours": ours,
        "verdict": verdict(holds),
    }


def draw(means: Rows) -> figures.Plot:
    """One panel a metric, one bar a variant, mean and s.e. over seeds; one group a hookpoint."""
    labels = list(dict.fromkeys(row["label"] for row in means))
    places = list(dict.fromkeys((row["model"], row["hookpoint"]) for row in means))
    with drawing.style():
        height = 0.9 + 0.24 * len(labels) * len(places)
        figure, panels = drawing.panels(1, len(METRICS), 11.5, height)
        for axes, (metric, name) in zip(panels, METRICS.items(), strict=True):
            for i, place in enumerate(places):
                here = [row for row in means if (row["model"], row["hookpoint"]) == place]
                axes.barh(
                    [
                        labels.index(row["label"]) + 0.8 * (i + 0.5) / len(places) - 0.4
                        for row in here
                    ],
                    [row[metric] for row in here],
                    height=0.7 / len(places),
                    xerr=[row[f"{metric}_se"] or 0 for row in here],
                    color=drawing.colour(i),
                    error_kw={"elinewidth": 1, "capsize": 2},
                    label=f"{place[1]}, {drawing.plain(place[0])}",
                )
            axes.set_yticks(range(len(labels)), labels if axes is panels[0] else [""] * len(labels))
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(name)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(places), fontsize=8)
    header = ("model", "hookpoint", "label", "n_seeds")
    header += tuple(key for metric in METRICS for key in (metric, f"{metric}_se"))
    alt = "R², loss recovered, dead fraction and L0 of every variant, means over seeds"
    rows = [tuple(row[key] for key in header) for row in means]
    return figures.Plot("ablations", alt, figure, header, rows)
