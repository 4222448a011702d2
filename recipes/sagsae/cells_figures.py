"""Figures of `cells.py`: the measures against L0, one panel per hookpoint and model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recipes.common.comparisons import Row, means_over_seeds
from sae_lens_bipolar.reports import drawing, figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Row]
FIGURES = {
    "dead_fraction": "dead fraction",
    "loss_recovered": "loss recovered",
    "r2": "R²",
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
