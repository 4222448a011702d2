"""Table and figure of Table 1, from the files of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.abstopk.steering_judges import JUDGES
from recipes.abstopk.steering_methods import METHODS
from recipes.abstopk.steering_statistics import bootstrap
from recipes.abstopk.table1_cells import read_lines
from recipes.abstopk.table1_claims import (
    LOG_P,
    MEASURES,
    Effects,
    Margins,
    claims,
    effects_of,
    texts_in,
)
from recipes.common.claims import claims_table, write_claims
from recipes.common.scales import build
from sae_lens_bipolar.files.atomic import read_json, write_text
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CONFIG_FILE
from sae_lens_bipolar.reports import drawing, tables
from sae_lens_bipolar.reports.figures import Plot, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE, SELECTED, TEXTS = "results/curve.jsonl", "results/selected.json", "results/generations"
SAES = "results/saes.json"
TABLE = "results/table1"  # .md and .csv
Row = Mapping[str, Any]
_TITLES = {
    "vader": "VADER",
    "reviews": "regression on reviews",
    LOG_P: "log p, nats per token",
}


def report(output: Path) -> str:
    """Write tables, figure and verdicts from `results/`; return the tables."""
    settings = load_yaml(output / CONFIG_FILE)
    margins = build(Margins, settings.get("margins", {}), "margins")
    lines, saes = read_lines(output / CURVE), read_json(output / SAES)
    effects = effects_of(lines, output / TEXTS)
    rows = [*method_rows(effects, lines, margins.draws), *level_rows(lines, output / TEXTS)]
    found = claims(
        effects,
        lines,
        margins,
        settings["design"].get("error", "keep"),
        min(row["n_train_tokens"] for row in saes),
    )
    accuracy = read_json(output / SELECTED)["judge_accuracy"]
    text = "\n\n".join([heading(settings, effects, accuracy), markdown(rows), sae_table(saes)])
    write_text(output / f"{TABLE}.md", text + "\n")
    write_text(output / f"{TABLE}.csv", tables.csv(rows))
    save(figure(effects, lines, margins.draws), output / "report")
    write_claims(output, found)
    return f"{text}\n\n{claims_table(found)}"


def heading(settings: Mapping[str, Any], effects: Effects, accuracy: float) -> str:
    """What a reader must know of the numbers."""
    prompts = max(
        (one.shape[1] for (_, m, _), one in effects.found.items() if m in JUDGES), default=0
    )
    return (
        f"Sentiment of {Path(settings['saes']['model']).name}, layer {settings['saes']['layer']}: "
        "effects are of turning towards positive less turning towards negative, at strengths whose "
        "cost on validation text is the budget; 95% intervals by bootstrap over seeds and prompts "
        f"({prompts} prompts of test text). The judge that was fitted calls {accuracy:.0%} of "
        "held-out reviews of 25 words rightly."
    )


def method_rows(effects: Effects, lines: Sequence[Row], draws: int) -> list[dict[str, Any]]:
    """One row per method and budget."""
    found = []
    for name, method in METHODS.items():
        for budget in effects.budgets:
            measured = {m: effects.found.get((name, m, budget)) for m in MEASURES}
            if all(one is None for one in measured.values()):
                continue
            test = [
                row
                for row in lines
                if (row["method"], row["split"], row["budget"]) == (name, "test", budget)
            ]
            row: dict[str, Any] = {"method": method.label, "budget": budget}
            row["seeds"] = len({one["seed"] for one in test})
            row["strength"] = float(np.mean([one["strength"] for one in test]))
            row["cost"] = float(np.mean([one["cost"] for one in test]))
            for measure, values in measured.items():
                interval = None if values is None else bootstrap(values, draws=draws)
                for key in ("mean", "low", "high"):
                    row[f"{measure} {key}"] = None if interval is None else getattr(interval, key)
            found.append(row)
    return found


def level_rows(lines: Sequence[Row], folder: Path) -> list[dict[str, Any]]:
    """One row per control that steers nothing: what it costs, and how its text is judged."""
    texts = [row for row in texts_in(folder) if row["side"] == 0]
    found = []
    for name, method in METHODS.items():
        costs = [row["cost"] for row in lines if row["method"] == name and row["side"] == 0]
        if not costs:
            continue
        row: dict[str, Any] = {"method": method.label, "budget": None}
        row |= {"seeds": len(costs), "strength": None, "cost": float(np.mean(costs))}
        for measure in MEASURES:
            scores = [one[measure] for one in texts if one["method"] == name and measure in JUDGES]
            row[f"{measure} mean"] = float(np.mean(scores)) if scores else None
            row |= {f"{measure} low": None, f"{measure} high": None}
        found.append(row)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The rows as Markdown, an interval behind each effect."""
    heads = ["method", "budget, nats", "strength", "cost on test, nats", *_TITLES.values()]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["method"]]
        cells += ["–" if row[key] is None else f"{row[key]:.3g}" for key in ("budget", "strength")]
        cells.append(f"{row['cost']:+.3f}")
        for measure in MEASURES:
            mean, low, high = (row[f"{measure} {key}"] for key in ("mean", "low", "high"))
            if mean is None:
                cells.append("–")
            else:
                cells.append(
                    f"{mean:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")
                )
        lines.append("| " + " | ".join(cells) + " |")
    note = "Of the rows without a budget the judges' scores are levels, not differences."
    return "\n".join([*lines, "", note])


def sae_table(saes: Sequence[Row]) -> str:
    """The SAEs, one line each."""
    lines = ["| SAE | latents | L0 | nMSE | loss recovered | dead | two-sided |", "|" + "---|" * 7]
    for row in saes:
        lines.append(
            f"| {row['name']} | {row['d_sae']} | {row['l0']:.1f} | {row['nmse']:.3f} | "
            f"{row['loss_recovered']:.3f} | {row['dead_fraction']:.1%} | "
            f"{row['bipolar_fraction']:.1%} |"
        )
    return "\n".join(lines)


def figure(effects: Effects, lines: Sequence[Row], draws: int) -> Plot:
    """Effect against utility on validation text, and the judges' effects at the budgets."""
    rows = curve_rows(lines, draws)
    shown = list(dict.fromkeys(row[0] for row in rows))
    with drawing.style():
        plot, (left, right) = drawing.panels(1, 2, 11.0, 4.6)
        for i, name in enumerate(shown):
            points = sorted((row[2], *row[3:6]) for row in rows if row[0] == name)
            x, y, low, high = (np.array(one) for one in zip(*points, strict=True))
            look = _look(i, name)
            left.errorbar(x, y, [y - low, high - y], label=METHODS[name].label, capsize=2, **look)
        left.set_xscale("symlog", linthresh=0.01)
        left.axhline(0, color=drawing.GREY, lw=0.8)
        left.set_title("validation: log p of positive less negative reviews")
        left.set_xlabel("cost, nats per token of held-out text")
        left.set_ylabel("effect, nats per token")
        judged = _judged(right, effects, shown, draws)
        handles, labels = left.get_legend_handles_labels()
        plot.legend(handles, labels, loc="outside lower center", ncols=3)
    header = ("method", "strength", "cost", "mean", "low", "high", "measure", "budget")
    alt = "Effect of steering against its cost, one line per method, and two judges' effects."
    return Plot("table1", alt, plot, header, [*rows, *judged])


def curve_rows(lines: Sequence[Row], draws: int) -> list[tuple[Any, ...]]:
    """Mean effect and cost of each method at each strength, its interval over seeds."""
    points: dict[tuple[str, float], dict[int, dict[int, Row]]] = {}
    for row in lines:
        if row["split"] == "validation":
            of = points.setdefault((row["method"], row["strength"]), {})
            of.setdefault(row["seed"], {})[row["side"]] = row
    found = []
    for (name, strength), by_seed in points.items():
        both = [sides for sides in by_seed.values() if len(sides) == 2]
        effect = np.array([[sides[1]["effect"] - sides[-1]["effect"]] for sides in both])
        cost = float(np.mean([row["cost"] for sides in both for row in sides.values()]))
        mean, low, high, *_ = bootstrap(effect, draws=draws)
        found.append((name, strength, cost, mean, low, high, LOG_P, None))
    return found


def _judged(
    axes: "Axes", effects: Effects, shown: Sequence[str], draws: int
) -> list[tuple[Any, ...]]:
    """Two bars per method, one per judge, at the largest budget that was judged."""
    budgets = [b for b in effects.budgets if any((n, JUDGES[0], b) in effects.found for n in shown)]
    rows: list[tuple[Any, ...]] = []
    for j, judge in enumerate(JUDGES):
        for i, name in enumerate(shown):
            values = effects.found.get((name, judge, budgets[-1])) if budgets else None
            if values is None:
                continue
            one = bootstrap(values, draws=draws)
            axes.errorbar(
                one.mean,
                len(shown) - i + 0.18 - 0.36 * j,
                xerr=[[max(0.0, one.mean - one.low)], [max(0.0, one.high - one.mean)]],
                color=drawing.colour(i),
                marker=drawing.MARKERS[j],
                mfc="white" if j else None,
                capsize=2,
            )
            rows.append((name, None, None, one.mean, one.low, one.high, judge, budgets[-1]))
    axes.axvline(0, color=drawing.GREY, lw=0.8)
    axes.set_yticks(range(len(shown), 0, -1), [METHODS[name].label for name in shown])
    if budgets:
        axes.set_title(f"test, {budgets[-1]:g} nats: VADER (filled), reviews (open)")
    axes.set_xlabel("judged effect, towards positive less towards negative")
    return rows


def _look(i: int, name: str) -> dict[str, Any]:
    control = METHODS[name].control is None
    return {
        "color": drawing.colour(i),
        "marker": drawing.MARKERS[i % len(drawing.MARKERS)],
        "markersize": 4,
        "linewidth": 1.2,
        "linestyle": ":" if control else "-",
    }
