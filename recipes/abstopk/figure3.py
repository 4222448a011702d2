"""Figure 3 of the AbsTopK paper: benchmark scores of the three methods as bars, task by task.

The paper shows one layer of one model; here every model and layer has a panel. Filled bars are the
protocol that is right for the task (its record in `sae_lens_bipolar.saebench.suites`), the dashed
outline on AbsTopK's is the other one. With several seeds a bar is their mean and each of them a
dot. The CSV beside it has a row for every SAE, with the paper's numbers.

    python -m recipes.abstopk.figure3 --output runs/abstopk/table2

draws it again from a run of `recipes.abstopk.table2`, which draws it too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.abstopk.paper_numbers import TASKS
from recipes.abstopk.scores import LABELS, READINGS, Score, averaged, of_run
from recipes.common.arguments import command, parse
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot, save
from sae_lens_bipolar.saebench.suites.registry import SUITES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 0.26  # of a bar; three stand on one task
_READING = {task: next(r.label for r in READINGS if r.task == task) for task in TASKS}


def drawn(found: Sequence[Score]) -> list[Score]:
    """The scores the figure shows: one reading per task, at SAEBench's default n and k."""
    return [s for s in found if s.is_default and s.reading == _READING[s.task]]


def figure(found: Sequence[Score]) -> Plot:
    """One panel per model and layer, three bars per task; higher is better.

    Args:
        found: every score, of every seed.
    """
    shown = drawn(found)
    groups: dict[tuple[str, int], list[Score]] = {}
    for score in shown:
        groups.setdefault((score.model, score.layer), []).append(score)
    with drawing.style():
        plot, grid = drawing.panels(len(groups), 1, 8.0, 0.6 + 3.0 * len(groups))
        for axes, ((model, layer), group) in zip(grid, groups.items(), strict=True):
            _panel(axes, group)
            axes.set_title(f"{model.rsplit('/', 1)[-1]}, layer {layer}: higher is better")
        handles, labels = grid[0].get_legend_handles_labels()
        plot.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    keys = ("model", "layer", "task", "method", "protocol", "budget", "ours", "paper", "sae")
    rows = [tuple(getattr(score, key) for key in keys) for score in shown]
    alt = "Bars of the benchmark scores of three methods, grouped by task."
    return Plot("figure3", alt, plot, keys, rows)


def _panel(axes: "Axes", scores: Sequence[Score]) -> None:
    tasks = [task for task in TASKS if any(score.task == task for score in scores)]
    rights = {task: SUITES[task].headline.protocol for task in tasks}
    for i, (method, label) in enumerate(LABELS.items()):
        of_method = [score for score in scores if score.method == method]
        for right in (True, False):
            seeds = [s for s in of_method if (s.protocol == rights[s.task]) is right]
            if not right and method != "abstopk":  # the other two are their own splits
                continue
            bars = averaged(seeds)
            place = {task: j + (i - 1) * _WIDTH for j, task in enumerate(tasks)}
            axes.bar(
                [place[score.task] for score in bars],
                [score.ours for score in bars],
                _WIDTH,
                label=label if right else f"{label}, the other protocol",
                color=drawing.COLOURS[i] if right else "none",
                edgecolor=drawing.COLOURS[i] if right else "black",
                linestyle="-" if right else "--",
            )
            if right and len(seeds) > len(bars):
                places = [place[score.task] for score in seeds]
                axes.plot(places, [score.ours for score in seeds], "o", color="black", ms=2.5)
    axes.axhline(0, color=drawing.GREY, lw=0.8)
    axes.set_xticks(range(len(tasks)), [_READING[task] for task in tasks])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("abstopk.figure3", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="run directory of table2")
    output = parse(parser, arguments).output
    drawing.require_matplotlib()
    save(figure(of_run(output)), output / "report")
    print(output / "report" / "figure3.png")


if __name__ == "__main__":
    main()
