"""Summaries of the counts of `census.py`, and verdicts and figures from the summaries alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common.claims import Claim, claims_table, verdict, write_claims
from recipes.common.verdicts import Estimate, decide_all, judged, over_seeds
from recipes.sagsae import parameters
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, PREFIX
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.reports import drawing, figures

Rows = Sequence[Mapping[str, Any]]

CENSUS = "results/census.json"  # one row per SAE
PARAMETERS = "results/parameters.json"  # one row per kind, d_in and d_sae

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHARES = np.round(np.linspace(0, 1, 51), 2)  # where curves are tabulated


def report(output: Path) -> str:
    """Write claims and figures from the summaries; return the claims as a table."""
    rows, costs = read_json(output / CENSUS), read_json(output / PARAMETERS)
    verdicts = claims(rows, costs)
    write_claims(output, verdicts)
    for plot in (draw_concentration(rows), draw_slopes(rows), draw_break_even()):
        figures.save(plot, output / "report")
    return claims_table(verdicts)


def is_signed(architecture: str) -> bool:
    """Whether the record of an architecture says so; False without a record."""
    record = ARCHITECTURES.get(architecture.removeprefix(PREFIX))
    return record is not None and record.signed


def summarise(row: Mapping[str, Any]) -> dict[str, Any]:
    """One SAE's row of `results/census.json`, from its counts and slopes.

    The two-sided mass of a latent is the smaller of its two sides' mean magnitudes per token.
    `concentration` says, by share of the live latents, what share of all two-sided mass those
    latents hold that have the most of it.
    """
    census = Census.from_dict(row["census"])
    sides = torch.stack(
        [
            census.positive_rate * census.positive_mean,
            census.negative_rate * census.negative_mean,
        ]
    )
    smaller = sides.min(0).values[census.alive].sort(descending=True).values.numpy()
    busiest = sides.sum(0).argsort(descending=True)[: max(1, int(census.alive.sum()) // 10)]
    kept = ("name", "architecture", "hook_name", "model", "d_in", "d_sae", "seed")
    found: dict[str, Any] = {key: row[key] for key in kept}
    found |= {
        "n_tokens": census.n_tokens,
        "dead_fraction": 1 - census.alive.double().mean().item(),
        "bipolar_fraction": census.bipolar_fraction,
        "bipolar_fraction_of_busiest_tenth": census.bipolar[busiest].double().mean().item(),
        "two_sided_share_of_mass": float(2 * smaller.sum() / max(sides.sum().item(), 1e-30)),
        "concentration": dict(
            zip(map(str, SHARES.tolist()), lorenz(smaller).tolist(), strict=True)
        ),
    }
    for side, slopes in row["slopes"].items():
        found[f"{side}_slopes"] = {
            "n": len(slopes),
            "quantiles": np.quantile(slopes, SHARES).tolist() if slopes else [],
            **{f"q{q}": float(np.quantile(slopes, q)) for q in QUANTILES if slopes},
        }
    return found


def lorenz(descending: np.ndarray) -> np.ndarray:
    """Share of the total that the first `SHARES` of the latents hold; zeros if there is none."""
    total = descending.sum()
    if not len(descending) or total <= 0:
        return np.zeros(len(SHARES))
    held = np.concatenate([[0.0], descending.cumsum() / total])
    return np.interp(SHARES, np.linspace(0, 1, len(held)), held)


def claims(rows: Rows, costs: Rows) -> list[Claim]:
    """The paper's claims about two-sided latents and their cost, tested on the summaries."""
    ours = [row for row in rows if row["architecture"] == "sign_aware_gated"]
    n = {
        "seeds": len({row["seed"] for row in ours}),
        "tokens": max((row["n_tokens"] for row in ours), default=0),
    }
    mlp, attention = (
        [row for row in ours if row["hook_name"].endswith(hook)]
        for hook in ("hook_mlp_out", "hook_attn_out")
    )
    two_sided = by_name(mlp, lambda row: row["bipolar_fraction"])
    held = by_name(attention, lambda row: row["concentration"]["0.1"])
    medians = {
        f"{name} {side}": slope
        for side in ("positive", "negative")
        for name, slope in by_name(
            [row for row in ours if row[f"{side}_slopes"]["n"]],
            lambda row, side=side: row[f"{side}_slopes"]["q0.5"] - 1,
        ).items()
    }
    near = [bounds for one in medians.values() for bounds in ((one, -0.1), (-one, -0.1))]
    signed = [row for row in costs if row["kind"].startswith("SA-GSAE")]
    most, half = ([(one, 0.5) for one in found.values()] for found in (two_sided, held))
    return [
        judged(
            "most live SA-GSAE latents on MLP outputs fire on both sides",
            "most",
            "; ".join(f"{name} {one.mean:.1%}" for name, one in two_sided.items()),
            most,
            decide_all(most),
            **n,
        ),
        judged(
            "on attention outputs two-sided use concentrates: a tenth of the live latents holds "
            "half of it or more",
            "a small set of top latents",
            "; ".join(f"{name} {one.mean:.1%}" for name, one in held.items()),
            half,
            decide_all(half),
            **n,
        ),
        judged(
            "the magnitude path is free of shrinkage: the median calibration slope of either side "
            "is within 0.1 of 1",
            "no L1 shrinkage on magnitudes",
            "; ".join(f"{name} {1 + one.mean:.3f}" for name, one in medians.items()),
            near,
            decide_all(near),
            **n,
        ),
        Claim(
            "the sign pays in parameters even where pairs are rare: it breaks even with 1% of the "
            "directions in antipodal pairs or fewer",
            "parameter-efficient even when anticorrelated pairs are rare",
            "; ".join(
                f"{kind}, d_in {d_in}: {rate:.2%}"
                for kind, d_in, rate in dict.fromkeys(
                    (row["kind"], row["d_in"], row["break_even"]) for row in signed
                )
            ),
            seeds=0,
            tokens=0,
            verdict=verdict(all(row["break_even"] <= 0.01 for row in signed) if signed else None),
        ),
    ]


def looks(rows: Rows, label: Callable[[str], str] = drawing.plain) -> list[dict[str, Any]]:
    """How each row's line is drawn: the seeds of an SAE alike, and one of them in the legend."""
    places: dict[str, int] = {}
    found = []
    for row in rows:
        name = row["name"].split("@")[0]
        named = {} if name in places else {"label": label(name)}
        i = places.setdefault(name, len(places))
        dash = drawing.DASHES[i % len(drawing.DASHES)]
        found.append({"color": drawing.colour(i), "linestyle": dash, **named})
    return found


def by_name(rows: Rows, value: Callable[[Mapping[str, Any]], float]) -> dict[str, Estimate]:
    """An estimate over seeds for every SAE; those of several seeds are called `NAME@seedN`."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["name"].split("@")[0], []).append(value(row))
    return {name: over_seeds(values) for name, values in found.items()}


def draw_concentration(rows: Rows) -> figures.Plot:
    """Share of two-sided use against the share of latents that hold it, one panel per hook."""
    signed = [row for row in rows if is_signed(row["architecture"])] or list(rows)
    hooks = list(dict.fromkeys(row["hook_name"] for row in signed))
    data = []
    with drawing.style():
        figure, panels = drawing.panels(1, len(hooks), 3.5 * len(hooks) + 0.4, 3.4)
        for axes, hook in zip(panels, hooks, strict=True):
            here = [row for row in signed if row["hook_name"] == hook]
            shares = by_name(here, lambda row: row["bipolar_fraction"])

            def label(name: str, shares: Mapping[str, Estimate] = shares) -> str:
                return f"{drawing.plain(name)}, {shares[name].mean:.0%} two-sided"

            for row, look in zip(here, looks(here, label), strict=True):
                curve = [(float(share), held) for share, held in row["concentration"].items()]
                axes.plot([x for x, _ in curve], [y for _, y in curve], **look)
                data += [(row["name"], hook, x, y) for x, y in curve]
            axes.plot([0, 1], [0, 1], color=drawing.GREY, linewidth=0.8, linestyle=":")
            axes.set(title=hook, xlabel="share of live latents", xlim=(0, 1), ylim=(0, 1.02))
            axes.legend(loc="lower right", fontsize=6.5)
        panels[0].set_ylabel("share of two-sided use")
    alt = "Concentration of two-sided use among live latents, one panel per hook, one line per SAE"
    header = ("name", "hook_name", "share_of_latents", "share_of_two_sided_use")
    return figures.Plot("concentration", alt, figure, header, data)


def draw_slopes(rows: Rows) -> figures.Plot:
    """Cumulative distribution of calibration slopes: hooks in columns, sides in rows."""
    hooks = list(dict.fromkeys(row["hook_name"] for row in rows))
    sides = ("positive", "negative")
    data = []
    with drawing.style():
        figure, panels = drawing.panels(2, len(hooks), 3.5 * len(hooks) + 0.4, 5.4)
        for i, axes in enumerate(panels):
            side, hook = sides[i // len(hooks)], hooks[i % len(hooks)]
            here = [row for row in rows if row["hook_name"] == hook]
            here = [row for row in here if row[f"{side}_slopes"]["quantiles"]]
            for row, look in zip(here, looks(here), strict=True):
                slopes = row[f"{side}_slopes"]["quantiles"]
                axes.plot(slopes, SHARES, **look)
                data += [
                    (row["name"], hook, side, q, slope)
                    for q, slope in zip(SHARES.tolist(), slopes, strict=True)
                ]
            axes.axvline(1, color=drawing.GREY, linewidth=0.8, linestyle=":")
            axes.set(title=f"{hook}, {side} side", xlabel="calibration slope", xlim=(0.5, 2))
            if axes.lines[:-1]:
                axes.legend(loc="lower right", fontsize=6.5)
            if i % len(hooks) == 0:
                axes.set_ylabel("share of latents")
    alt = "Distribution of calibration slopes over latents, by hook and side; 1 is calibrated"
    header = ("name", "hook_name", "side", "share_of_latents", "slope")
    return figures.Plot("slopes", alt, figure, header, data)


def draw_break_even() -> figures.Plot:
    """The rate of antipodal pairs from which a signed SAE is the smaller, against `d_in`."""
    kinds = [kind for kind in parameters.KINDS if kind.startswith("SA-GSAE")]
    d_ins = [2**power for power in range(5, 14)]
    rates = {kind: [parameters.break_even(kind, d_in) for d_in in d_ins] for kind in kinds}
    with drawing.style():
        figure, (axes,) = drawing.panels(1, 1, 5.2, 3.4)
        for i, kind in enumerate(kinds):
            look = {"marker": drawing.MARKERS[i], "markersize": 4, "color": drawing.colour(i)}
            axes.plot(d_ins, rates[kind], label=kind, **look)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
        axes.set(xlabel="d_in", ylabel="directions in antipodal pairs\nto break even with Gated")
        axes.legend()
    alt = (
        "Share of directions in antipodal pairs from which SA-GSAE has fewer parameters than Gated"
    )
    data = [(kind, d, rate) for kind in kinds for d, rate in zip(d_ins, rates[kind], strict=True)]
    return figures.Plot("break_even", alt, figure, ("kind", "d_in", "break_even"), data)
