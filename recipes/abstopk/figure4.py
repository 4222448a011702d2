"""Figures 2 and 4 of the AbsTopK paper: training MSE, nMSE and loss recovered against L0.

TopK and AbsTopK at each k of the paper's lists, JumpReLU swept over its threshold theta, for each
language model and layer. One cell trains the SAEs of one layer in shared forward passes. Figure,
table and verdicts are made from `results/summary.json`.

    results/summary.json     one row per SAE
    results/figure4.md       the three methods at each k
    results/claims.json      the paper's ranking, and its verdict by each measure
    report/figure4.png       the figure, with a CSV of what it shows

    python -m recipes.abstopk.figure4 --output runs/abstopk/figure4

The same command continues a run that stopped. More commands and all settings are in
recipes/abstopk/figure4.yaml.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recipes.abstopk.ranking import ranking_sentence
from recipes.abstopk.training import (
    add_options,
    chosen,
    read_plan,
    resources,
    seeded,
    train,
    training_cell,
)
from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell, run_recipe
from recipes.common.claims import Claim, claims_table, verdict, write_claims
from recipes.common.scales import read_scale
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.names import SUMMARY
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIG = Path(__file__).parent / "figure4.yaml"
RESULT = "result.json"
TABLE = "results/figure4.md"

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
    jumprelu: float | None  # interpolated at L0 = k; None outside the L0 it reached


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train and measure the SAEs of one layer, and write their rows."""
    write_json(directory / RESULT, train(params, directory))


def report(output: Path) -> str:
    """Write figure, table and verdicts from `results/summary.json`; return the two tables."""
    rows = read_json(output / SUMMARY)
    compared = comparisons(rows)
    found = claims(rows, compared)
    save(figure(rows), output / "report")
    text = f"{ranking_sentence(found, rows)}\n\n{table(compared)}"
    write_text(output / TABLE, text)
    write_claims(output, found)
    return f"{text}\n{claims_table(found)}"


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Every k of every layer and measure."""
    found = []
    for (model, layer), group in by_layer(rows).items():
        for measure in MEASURES:
            at_k = {
                method: {row["k"]: row[measure.key] for row in group if row["method"] == method}
                for method in ("topk", "abstopk")
            }
            jumprelu = interpolator([row for row in group if row["method"] == "jumprelu"], measure)
            for k, value in sorted(at_k["abstopk"].items()):
                topk = at_k["topk"][k]
                found.append(Comparison(model, layer, k, measure, value, topk, jumprelu(k)))
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


def figure(rows: Sequence[Row]) -> Plot:
    """Three panels per model and layer, one line per method."""
    groups = by_layer(rows)
    with drawing.style():
        plot, grid = drawing.panels(len(groups), 3, 11.0, 0.6 + 3.0 * len(groups))
        for i, ((model, layer), group) in enumerate(groups.items()):
            for axes, measure in zip(grid[3 * i : 3 * i + 3], MEASURES, strict=True):
                _panel(axes, group, measure)
                axes.set_title(f"{model.rsplit('/', 1)[-1]}, layer {layer}\n{measure.title}")
        handles, labels = grid[0].get_legend_handles_labels()
        plot.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    keys = ("model", "layer", "method", "point", "l0", *(m.key for m in MEASURES))
    alt = "Training MSE, nMSE and loss recovered against L0, one line each for three methods."
    return Plot("figure4", alt, plot, keys, [tuple(row[key] for key in keys) for row in rows])


def _panel(axes: "Axes", rows: Sequence[Row], measure: Measure) -> None:
    drawn = [row for row in rows if row["l0"] > 0]  # an SAE that never fires has no place here
    for i, (method, label) in enumerate(METHODS.items()):
        points = sorted((row["l0"], row[measure.key]) for row in drawn if row["method"] == method)
        if points:
            xs, ys = zip(*points, strict=True)
            look = {"color": drawing.colour(i), "marker": drawing.MARKERS[i], "markersize": 4.5}
            axes.plot(xs, ys, label=label, linewidth=1.3, **look)
    drawing.l0_axis(axes, [row["l0"] for row in drawn])
    drawing.log_if_wide(axes, [row[measure.key] for row in drawn])
    axes.set_xlabel("L0 (latents per token)")


def table(compared: Sequence[Comparison]) -> str:
    """Markdown, one line per layer and k; the best of the three is bold."""
    heads = ["model", "layer", "k"]
    heads += [f"{m.title.split(',')[0]} {label}" for m in MEASURES for label in METHODS.values()]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    places: dict[tuple[str, int, int], list[str]] = {}
    for one in compared:
        values = {"jumprelu": one.jumprelu, "topk": one.topk, "abstopk": one.abstopk}
        known = [value for value in values.values() if value is not None]
        best = (min if one.measure.lower_is_better else max)(known)
        cells = places.setdefault((one.model, one.layer, one.k), [])
        for method in METHODS:
            value = values[method]
            shown = "–" if value is None else f"{value:.4g}"
            cells.append(f"**{shown}**" if value == best else shown)
    lines += ["| " + " | ".join([*map(str, key), *cells]) + " |" for key, cells in places.items()]
    note = (
        "JumpReLU is interpolated at L0 = k (linear in log L0); – where its sweep does not reach."
    )
    return "\n".join([*lines, "", note, ""])


def claims(rows: Sequence[Row], compared: Sequence[Comparison]) -> list[Claim]:
    """The paper's ranking by each measure, beside ours."""
    tokens = min(row["n_train_tokens"] for row in rows)
    found = []
    for measure in MEASURES:
        mine = [one for one in compared if one.measure is measure]
        against = [one for one in mine if one.jumprelu is not None]
        over_topk = sum(measure.better(one.abstopk, one.topk) for one in mine)
        over_jumprelu = sum(measure.better(one.abstopk, one.jumprelu or 0.0) for one in against)
        holds = 2 * over_topk > len(mine) and (2 * over_jumprelu > len(against) or not against)
        name = measure.title.split(",")[0]
        found.append(
            Claim(
                claim=f"AbsTopK has the best {name} of the three at most sparsities",
                paper="curves without numbers (Figures 2 and 4)",
                ours=(
                    f"better than TopK at {over_topk} of {len(mine)} k; better than JumpReLU at "
                    f"{over_jumprelu} of the {len(against)} k that its sweep reaches"
                ),
                seeds=len({row["seed"] for row in rows}),
                tokens=tokens,
                verdict=verdict(holds if mine else None),
            )
        )
    return found


def cells_of(
    settings: Mapping[str, Any], names: Sequence[str] | None, device: str, output: Path
) -> list[Cell]:
    """One cell per layer of each model, or of the models `names`."""
    return [
        training_cell(settings, name, (layer,), device, output)
        for name, model in chosen(read_plan(settings), names).items()
        for layer in model.layers
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_command("abstopk.figure4", __doc__, CONFIG)
    add_options(parser)
    options = parse(parser, arguments)
    drawing.require_matplotlib()  # now rather than after the training
    settings = read_scale(options.config, options.scale)
    cells = cells_of(settings, options.models, options.device, options.output)
    if run_recipe(options, seeded(settings), cells, run_cell, resources(options), RESULT):
        done = sorted((options.output / "cells").glob(f"*/{RESULT}"))  # also of other --models
        write_json(options.output / SUMMARY, [row for file in done for row in read_json(file)])
        print(report(options.output))


if __name__ == "__main__":
    main()
