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

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.abstopk.figure4_claims import (
    FROM_MEAN,
    MEASURES,
    METHODS,
    Comparison,
    Measure,
    Row,
    averaged,
    by_layer,
    claims,
    comparisons,
)
from recipes.abstopk.figure4_seeds import has_one_sparsity, seeds_figure
from recipes.abstopk.ranking import ranking_sentence
from recipes.abstopk.training import (
    add_options,
    chosen,
    read_plan,
    resources,
    search_for,
    seed_cells,
    seeded,
    train,
    training_cell,
    try_one,
)
from recipes.common.arguments import Options, parse, recipe_command
from recipes.common.cells import Cell, run_recipe
from recipes.common.claims import claims_table, write_claims
from recipes.common.comparisons import means_over_seeds
from recipes.common.evidence import write_train_seconds
from recipes.common.learning_rates import chosen_rates
from recipes.common.medium_text import study
from recipes.common.scales import read_scale
from recipes.common.time_limit import limited
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CONFIG_FILE, SUMMARY
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIG = Path(__file__).parent / "figure4.yaml"
RESULT = "result.json"
TABLE = "results/figure4.md"


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train and measure the SAEs of one layer, and write their rows."""
    write_json(directory / RESULT, train(params, directory))


def report(output: Path) -> str:
    """Write figure, table and verdicts from `results/summary.json`; return the two tables."""
    rows = read_json(output / SUMMARY)
    compared = averaged(comparisons(rows))
    found = claims(rows, load_yaml(output / CONFIG_FILE).get("margins", {}))
    save(figure(rows), output / "report")
    text = f"{ranking_sentence(found[: len(MEASURES)], rows)}\n\n{table(compared)}"
    write_text(output / TABLE, text)
    write_claims(output, found)
    return f"{text}\n{claims_table(found)}"


def figure(rows: Sequence[Row]) -> Plot:
    """Three panels per model and layer, one curve per method: means over seeds."""
    if has_one_sparsity(rows):
        return seeds_figure(rows)
    keys = ("model", "layer", "method", "point")
    started = [row for row in rows if row.get("start", FROM_MEAN) == FROM_MEAN]
    rows = means_over_seeds(started, keys, ("l0", *(m.key for m in MEASURES)))
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
        "JumpReLU without an L0 target is interpolated at L0 = k (linear in log L0); – where its "
        "sweep does not reach."
    )
    return "\n".join([*lines, "", note, ""])


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
    with limited(options.minutes):
        if run_all(options, settings):
            done = sorted((options.output / "cells").glob(f"*/{RESULT}"))  # also of other --models
            found = {file.parent.name: _rows(read_json(file)) for file in done}
            write_train_seconds(options.output, found)
            rows = [row for of_cell in found.values() for row in of_cell]
            write_json(options.output / SUMMARY, rows)
            print(report(options.output))


def run_all(options: Options, settings: Mapping[str, Any]) -> bool:
    """Run the cells; of a scale with seeds first those that choose the learning rates."""
    run = partial(run_recipe, options, seeded(settings), resources=resources(options))
    names, device = options.models, options.device
    plan = read_plan(settings)
    if not plan.seeds:
        cells = cells_of(settings, names, device, options.output)
        return run(cells, run_cell, result=RESULT)
    found = study(plan.cache, options.cache)
    cells = []
    for name, model in chosen(plan, names).items():
        for layer in model.layers:
            search = search_for(settings, name, layer, device, found)
            if not run(search, try_one, result=RESULT):
                return False
            rates = chosen_rates(search, options.output)
            cells += seed_cells(settings, name, layer, device, found, rates)
    return run(cells, run_cell, result=RESULT)


def _rows(found: Any) -> list[Row]:
    """The rows of a cell; a cell that tried a learning rate has none."""
    return found if isinstance(found, list) else []


if __name__ == "__main__":
    main()
