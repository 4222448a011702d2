"""Means, verdicts and the figure of `ablations.py`, from `results/saes.json` alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.common.claims import Claim, claims_table, write_claims
from recipes.common.comparisons import Row, matched_differences, means_over_seeds, select
from recipes.common.verdicts import (
    Estimate,
    decide,
    decide_all,
    decide_within,
    judged,
    over_seeds,
    targets_claim,
)
from recipes.sagsae.training import SAES
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CONFIG_FILE
from sae_lens_bipolar.reports import drawing, figures

Rows = Sequence[Row]

RECOMMENDED, FULL_WIDTH = "recommended", "2H: recommended"
LARGE = "2H: large thresholds, no resets"
STARTS = {  # of thresholds at full width -> label of VARIANTS with resets, without
    "small thresholds": ("2H: small thresholds", "2H: small thresholds, no resets"),
    "thresholds of the first batch": (FULL_WIDTH, "2H: no resets"),
}
METRICS = {
    "r2": "R²",
    "loss_recovered": "loss recovered",
    "dead_fraction": "dead fraction",
    "l0": "L0",
}


def report(output: Path) -> str:
    """Write means, claims and the figure from `results/saes.json`; return the claims as a table."""
    rows = read_json(output / SAES)
    means = variants(rows)
    write_json(output / "results/variants.json", means)
    verdicts = claims(rows, load_yaml(output / CONFIG_FILE).get("margins"))
    write_claims(output, verdicts)
    figures.save(draw(means), output / "report")
    return claims_table(verdicts)


def variants(rows: Rows) -> list[dict[str, Any]]:
    """Mean and standard error over seeds, one row per model, hookpoint and variant."""
    keys = ("model", "hookpoint", "label")
    return means_over_seeds(rows, keys, (*METRICS, "bipolar_fraction", "nmse"))


def claims(rows: Rows, margins: Mapping[str, float] | None = None) -> list[Claim]:
    """The paper's claims about its ablations, each tested on the rows, seed by seed.

    Args:
        rows: of `results/saes.json`.
        margins: "r2" and "dead_fraction": what a difference without a number of the paper's must
            exceed; 0 if there is none. "l0": the tolerance of L0 targets.
    """
    margins = margins or {}
    n = {
        "seeds": len({row["seed"] for row in rows}),
        "tokens": max((row["n_train_tokens"] for row in rows), default=0),
    }
    untied = gap(rows, "symmetry none", RECOMMENDED, "r2")
    tied_gain = gap(rows, "symmetry gain", RECOMMENDED, "r2")
    both = f"untied less tied {untied}; gain tied less all tied {tied_gain}"
    tied = untied if tied_gain else None
    found = [
        _without_auxiliary(rows, n),
        judged(
            "tying thresholds, gains and biases of the two sides changes R² by 0.0015 or less",
            "|ΔR²| = 0.0015",
            both if tied else "",
            [(tied, -0.0015), (-tied, -0.0015)] if tied else [],
            decide_within(tied, 0.0015),
            **n,
        ),
        _gap_claim(
            "the two-sided gate is load-bearing: one-sided, R² is lower by 0.01 or more",
            "load-bearing",
            gap(rows, RECOMMENDED, "one-sided gate", "r2"),
            0.01,
            n,
        ),
        _gap_claim(
            "at full width the recommended settings do not collapse: R² at 2H is not lower than at "
            "H by 0.01 or more",
            "collapse at full width on the residual stream of SmolLM3-3B; settings recommended "
            "against it",
            gap(rows, FULL_WIDTH, RECOMMENDED, "r2"),
            -0.01,
            n,
        ),
        *(
            _gap_claim(
                f"resets keep latents alive at full width: from {start}, the dead fraction is "
                "lower with them than without",
                "recommended, from small thresholds",
                gap(rows, without, with_resets, "dead_fraction"),
                margins.get("dead_fraction", 0.0),
                n,
            )
            for start, (with_resets, without) in STARTS.items()
        ),
        *(
            _gap_claim(
                "large thresholds without resets collapse at full width: R² is lower by 0.1 or "
                f"more than from {start} with resets",
                "small thresholds and resets recommended",
                gap(rows, with_resets, LARGE, "r2"),
                0.1,
                n,
            )
            for start, (with_resets, _) in STARTS.items()
        ),
        _gap_claim(
            "letting the auxiliary term train the decoder costs R²",
            "not given: users of SAELens's gated class report it",
            gap(rows, RECOMMENDED, "auxiliary loss trains the decoder", "r2"),
            margins.get("r2", 0.0),
            n,
        ),
    ]
    if "l0" not in margins:
        return found
    named = [{**row, "name": row["label"]} for row in rows]
    return [*found, targets_claim(named, margins["l0"])]


def gap(rows: Rows, label: str, reference: str, metric: str) -> Estimate | None:
    """`label - reference`, matched by model, hookpoint and seed; None without a pair."""
    ours, theirs = (select(rows, label=name) for name in (label, reference))
    found = matched_differences(ours, theirs, metric, by=("model", "hookpoint", "seed"))
    return _by_seed({key: [value] for key, value in found.items()}) if found else None


def _by_seed(values: Mapping[tuple[Any, ...], Sequence[float]]) -> Estimate:
    """An estimate of one value per seed (the key's last part): the mean of all that share it."""
    seeds: dict[Any, list[float]] = {}
    for (*_, seed), several in values.items():
        seeds.setdefault(seed, []).extend(several)
    return over_seeds([fmean(of_seed) for of_seed in seeds.values()])


def _gap_claim(
    claim: str, paper: str, found: Estimate | None, margin: float, n: dict[str, int]
) -> Claim:
    tested = [] if found is None else [(found, margin)]
    return judged(claim, paper, str(found or ""), tested, decide(found, margin), **n)


def _without_auxiliary(rows: Rows, n: dict[str, int]) -> Claim:
    bare = select(rows, label="no auxiliary loss")
    ours, tested = "", []
    if bare:
        mean = {key: fmean(row[key] for row in bare) for key in METRICS}
        ours = f"loss recovered {mean['loss_recovered']:.3f}, {mean['dead_fraction']:.1%} dead, "
        ours += f"R² {mean['r2']:.3f}, L0 {mean['l0']:.1f}"
        lost, dead = (
            _by_seed({(i, row["seed"]): [row[key]] for i, row in enumerate(bare)})
            for key in ("loss_recovered", "dead_fraction")
        )
        tested = [(-lost, -0.5), (dead, 0.9)]
    return judged(
        "without the auxiliary loss it collapses: loss recovered below 0.5 and more than 90% of "
        "latents dead",
        "loss recovered 0.27, 98% dead",
        ours,
        tested,
        decide_all(tested),
        **n,
    )


def draw(means: Rows) -> figures.Plot:
    """One panel per metric, one bar per variant and hookpoint: mean and s.e. over seeds."""
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
