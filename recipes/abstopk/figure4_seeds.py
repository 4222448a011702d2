"""Figure 4 of a run with one sparsity: every seed of each method, with means and 95% intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recipes.abstopk.figure4_claims import (
    FROM_MEAN,
    FROM_ZERO,
    MEASURES,
    METHODS,
    Measure,
    Row,
    by_layer,
)
from recipes.common.verdicts import over_seeds
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {  # method and where b_dec starts, in the order of the figure, from below
    ("topk", FROM_ZERO): "TopK, b_dec from 0",
    ("abstopk", FROM_ZERO): "AbsTopK, b_dec from 0",
    **{(method, FROM_MEAN): label for method, label in METHODS.items()},
}


def has_one_sparsity(rows: Sequence[Row]) -> bool:
    """Whether all SAEs of a run were asked for the same L0, so that there are no curves."""
    return len({row.get("k") for row in rows}) == 1 and rows[0].get("k") is not None


def seeds_figure(rows: Sequence[Row]) -> Plot:
    """Three panels per model and layer, one line per method and start."""
    groups = by_layer(rows)
    kinds = [kind for kind in KINDS if any(_kind(row) == kind for row in rows)]
    with drawing.style():
        plot, grid = drawing.panels(len(groups), 3, 11.0, (0.9 + 0.32 * len(kinds)) * len(groups))
        for i, ((model, layer), group) in enumerate(groups.items()):
            for j, measure in enumerate(MEASURES):
                axes = grid[3 * i + j]
                _panel(axes, group, measure, kinds)
                axes.set_yticks(
                    range(len(kinds)), [KINDS[kind] if j == 0 else "" for kind in kinds]
                )
                name = model.rsplit("/", 1)[-1]
                axes.set_title(f"{name}, layer {layer}, k {group[0]['k']}\n{measure.title}")
    keys = ("model", "layer", "method", "start", "seed", "l0", *(m.key for m in MEASURES))
    alt = "Training MSE, nMSE and loss recovered of every seed, with means and 95% intervals."
    data = [tuple(row.get(key, FROM_MEAN) for key in keys) for row in rows]
    return Plot("figure4", alt, plot, keys, data)


def _panel(
    axes: "Axes", rows: Sequence[Row], measure: Measure, kinds: Sequence[tuple[str, str]]
) -> None:
    for height, kind in enumerate(kinds):
        values = [row[measure.key] for row in rows if _kind(row) == kind]
        if not values:
            continue
        hue = drawing.colour(list(METHODS).index(kind[0]))
        axes.plot(values, [height] * len(values), "o", color=hue, alpha=0.45, markersize=4)
        mean = over_seeds(values)
        axes.plot([mean.mean], [height], "|", color=hue, markersize=12)
        if bounds := mean.interval():
            axes.plot(bounds, [height, height], color=hue, linewidth=1.3)
    axes.set_ylim(-0.6, len(kinds) - 0.4)


def _kind(row: Row) -> tuple[str, str]:
    return row["method"], row.get("start", FROM_MEAN)
