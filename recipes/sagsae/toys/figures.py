"""Drawing shared by the toy protocols: curves with confidence intervals over seeds."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from recipes.common.comparisons import Interval, Row, bootstrap, select
from recipes.sagsae.toys.training import CONTESTANTS
from sae_lens_bipolar.reports import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTERVAL_NOTE = "Bands and bars: 95% bootstrap confidence interval of the mean over seeds."


def over_seeds(rows: Sequence[Row], value: str | Callable[[Row], float]) -> Interval:
    """Mean and confidence interval of a field, or of a function of the row."""
    return bootstrap([row[value] if isinstance(value, str) else value(row) for row in rows])


def contestants_in(rows: Sequence[Row]) -> list[str]:
    """Keys of the contestants that have rows, in the order of `CONTESTANTS`."""
    present = {row["contestant"] for row in rows}
    return [name for name in CONTESTANTS if name in present]


def look(contestant: str) -> dict[str, Any]:
    """Colour, dash, marker and label of a contestant, the same in every figure."""
    i = list(CONTESTANTS).index(contestant)
    return {
        "color": drawing.colour(i),
        "linestyle": drawing.DASHES[i % len(drawing.DASHES)],
        "marker": drawing.MARKERS[i % len(drawing.MARKERS)],
        "markersize": 7 - 0.6 * i,  # where curves coincide, those below still show
        "linewidth": 1.4,
        "label": CONTESTANTS[contestant].label,
    }


def curve(
    axes: "Axes", contestant: str, xs: Sequence[float], ys: Sequence[Interval], **changes: Any
) -> None:
    """One contestant's means with a band from `low` to `high`."""
    style = look(contestant) | changes
    axes.plot(xs, [y.mean for y in ys], **style)
    lows, highs = [y.low for y in ys], [y.high for y in ys]
    axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)


def sweep(
    axes: "Axes", rows: Sequence[Row], x: str, value: str | Callable[[Row], float], title: str
) -> list[tuple[Any, ...]]:
    """A curve for each contestant of `value` against the field `x`.

    Returns:
        Rows of the CSV: title, contestant, x, seeds, mean, low, high.
    """
    drawn = []
    for contestant in contestants_in(rows):
        mine = select(rows, contestant=contestant)
        xs = sorted({row[x] for row in mine})
        groups = [select(mine, **{x: at}) for at in xs]
        ys = [over_seeds(group, value) for group in groups]
        curve(axes, contestant, xs, ys)
        drawn += [
            (title, contestant, at, len(group), *y)
            for at, group, y in zip(xs, groups, ys, strict=True)
        ]
    points = sorted({row[x] for row in rows})
    axes.set_xticks(points, [f"{at:g}" for at in points])
    axes.set_title(title)
    return drawn


SWEEP_HEADER = ("panel", "contestant", "x", "seeds", "mean", "ci_low", "ci_high")


def legend_below(figure: "Figure", axes: "Axes") -> None:
    """One legend for all panels, under them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 7))
