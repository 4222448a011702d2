"""How the figures look: style, colours, and what several figures do with an axis."""

import importlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sae_lens_bipolar.reports.tables import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart also by colour-blind readers and, with the dashes and markers, in greyscale.
COLOURS = ("#2b6cb0", "#d9730d", "#2f8f5b", "#a0439a", "#8a6d1d", "#3c9aa8", "#c0392b", "#5b5f97")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#8a8f98"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the figures look alike everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": "#4a4f57",
    "ytick.color": "#4a4f57",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def require_matplotlib() -> None:
    """Raise ImportError, saying what to install, where matplotlib is absent."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "the figures of a report need matplotlib: pip install 'sae-lens-bipolar[reports]'"
        ) from error


def style() -> AbstractContextManager[None]:
    """Context with matplotlib's defaults and `STYLE`, whatever the user's own settings are."""
    require_matplotlib()
    import matplotlib.style

    return matplotlib.style.context(["default", STYLE])


def panels(n_rows: int, n_columns: int, width: float, height: float) -> tuple["Figure", list[Any]]:
    """A figure of `width` by `height` inches, and its axes row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(n_rows, n_columns, squeeze=False).flat)


def l0_axis(axes: "Axes", values: Sequence[float]) -> None:
    """Room on both sides; at similar L0 a difference of one latent must not fill the panel."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high > 8 * low:
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / 1.4, high * 1.4)
        axes.xaxis.set_major_formatter("{x:g}")
        return
    half = max(0.56 * (high - low), 0.12 * high) or 0.5
    axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)


def label_in_margin(axes: "Axes", points: list[tuple[float, float, str, str]]) -> None:
    """Write the names right of the panel, ordered by height, each with a line to its point."""
    points.sort(key=lambda point: point[1])
    axes.margins(y=0.12)
    bottom, top = axes.get_ylim()
    heights: list[float] = []
    step = min(0.08, 1 / max(len(points), 1))
    for _, y, _, _ in points:
        wanted = (y - bottom) / (top - bottom)
        heights.append(max(wanted, heights[-1] + step) if heights else wanted)
    if heights and heights[-1] > 1:  # pushed out at the top: push back down from there
        heights[-1] = 1.0
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - step)
    for (x, y, label, hue), height in zip(points, heights, strict=True):
        axes.annotate(
            label,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=hue,
            fontsize=8.5,
            arrowprops={
                "arrowstyle": "-",
                "color": hue,
                "linewidth": 0.6,
                "alpha": 0.55,
                "relpos": (0, 0.5),
            },
        )


def target_line(axes: "Axes", targets: list[float], horizontal: bool) -> None:
    """A dotted line at each target L0."""
    for i, target in enumerate(targets):
        draw = axes.axhline if horizontal else axes.axvline
        label = "target L0" if i == 0 else None
        draw(target, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1, label=label)


def log_if_wide(axes: "Axes", values: Sequence[float]) -> None:
    """A logarithmic axis where `values` span more than a factor of 5 and none touches zero."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = [value for value in values if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def short_count(value: float, _: Any = None) -> str:
    """A count as a tick label: 200k, 1.2M."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def or_nan(value: Any) -> float:
    """A value to plot; anything but a finite number leaves a gap."""
    return float(value) if is_number(value) else math.nan


def colour(i: int) -> str:
    """Colour of the SAE at position `i`, the same in every figure."""
    return COLOURS[i % len(COLOURS)]


def plain(name: str) -> str:
    """`name` for matplotlib, where a dollar sign would start a formula."""
    return name.replace("$", r"\$")
