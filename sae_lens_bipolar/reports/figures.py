"""The figures of a run, each with the data it shows; drawn without pyplot's global state.

A drawing function returns a `Plot`; `save` writes its PNG and, beside it, its CSV.
"""

import csv
import importlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_bipolar.reports.rundir import Run, find_setting
from sae_lens_bipolar.reports.tables import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart also by colour-blind readers and, with the dashes and markers, in greyscale.
COLOURS = ("#2b6cb0", "#d9730d", "#2f8f5b", "#a0439a", "#8a6d1d", "#3c9aa8", "#c0392b", "#5b5f97")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#8a8f98"
DPI = 170
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


@dataclass(frozen=True)
class Plot:
    """A figure, the words a reader who cannot see it needs, and the rows it shows."""

    name: str
    alt: str
    figure: "Figure"
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def require_matplotlib() -> None:
    """Raise ImportError, saying what to install, where matplotlib is absent."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "the figures of a report need matplotlib: pip install 'sae-lens-bipolar[reports]'"
        ) from error


def save(plot: Plot, folder: Path) -> None:
    """Write `<name>.png` and `<name>.csv` (the plotted data, every digit) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with _style():
        plot.figure.savefig(folder / f"{plot.name}.png", dpi=DPI)
    with open(folder / f"{plot.name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(plot.header)
        writer.writerows(plot.rows)


def training(run: Run) -> Plot | None:
    """Reconstruction error and L0 against training tokens; None without metrics.jsonl."""
    metric = next((m for m in ("nmse", "mse_loss", "loss") if _any(run.metrics, m)), None)
    if metric is None:
        return None
    names = {"nmse": "nMSE (training batch)", "mse_loss": "MSE loss", "loss": "loss"}
    with _style():
        figure, (left, right) = _panels(1, 2, 10.4, 3.5)
        rows = []
        for i, name in enumerate(run.sae_names()):
            lines = [line for line in run.metrics if line["sae"] == name]
            tokens = [line["n_tokens"] for line in lines]
            for axes, key in ((left, metric), (right, "l0")):
                values = [_or_nan(line.get(key)) for line in lines]
                # Later lines are thinner: TopK and AbsTopK share one L0, and both should show.
                width = max(1.2, 2.6 - 0.45 * i)
                style = {"color": _colour(i), "linestyle": DASHES[i % len(DASHES)]}
                axes.plot(tokens, values, label=_plain(name), linewidth=width, **style)
            rows += [(name, x["step"], x["n_tokens"], x.get(metric), x["l0"]) for x in lines]
        titles = {metric: names[metric], "l0": "L0 (latents per token)"}
        for axes, (key, title) in zip((left, right), titles.items(), strict=True):
            axes.set_title(title)
            axes.set_xlabel("training tokens")
            axes.xaxis.set_major_formatter(_thousands)
            _log_if_wide(axes, [_or_nan(line.get(key)) for line in run.metrics])
        _target_line(right, l0_target(run), horizontal=True)
        # One legend for both panels: it holds the target too, which only the right one draws.
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    alt = f"Two panels against training tokens, one line an SAE: {names[metric]}, and L0."
    return Plot("training", alt, figure, ("sae", "step", "n_tokens", metric, "l0"), rows)


def reconstruction(run: Run) -> Plot | None:
    """nMSE and loss recovered against L0 on held-out text; None without summary.json."""
    if not run.summary:
        return None
    with _style():
        height = max(3.3, 0.26 * len(run.summary) + 1.2)
        figure, panels = _panels(1, 2, 10.4, height)
        titles = {
            "nmse": "nMSE, lower is better",
            "loss_recovered": "Loss recovered, higher is better",
        }
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            axes.set_title(title)
            axes.set_xlabel("L0 (latents per token)")
            points = []
            for i, row in enumerate(run.summary):
                if is_number(row["l0"]) and is_number(row[key]):
                    marker = MARKERS[i % len(MARKERS)]
                    axes.plot(row["l0"], row[key], marker, color=_colour(i), markersize=7)
                    points.append((row["l0"], row[key], _plain(row["name"]), _colour(i)))
            _l0_axis(axes, [x for x, *_ in points])
            _label_in_margin(axes, points)
            _target_line(axes, l0_target(run), horizontal=False)
    keys = ("l0", "nmse", "loss_recovered")
    rows = [(row["name"], row["architecture"], *(row[key] for key in keys)) for row in run.summary]
    alt = "Two panels, one point an SAE: nMSE and loss recovered on held-out text, each against L0."
    return Plot("reconstruction", alt, figure, ("sae", "architecture", *keys), rows)


def polarity(run: Run) -> Plot | None:
    """Firing rate, negative against positive side, one panel an SAE; None without a census."""
    names = [name for name in run.sae_names() if name in run.census]
    if not names:
        return None
    rates = [
        rate
        for name in names
        for side in ("positive_rate", "negative_rate")
        for rate in run.census[name][side]
        if rate > 0
    ]
    floor = math.floor(math.log10(min(rates, default=1e-3)))
    with _style():
        columns = min(len(names), 4 if len(names) in (4, 7, 8) or len(names) > 9 else 3)
        n_rows = math.ceil(len(names) / columns)
        width = 10.4 if columns > 2 else 4.4 * columns
        figure, panels = _panels(n_rows, columns, width, 0.3 + n_rows * (width / columns + 0.35))
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        rows: list[tuple[Any, ...]] = []
        for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
            census = run.census[name]
            pairs = list(zip(census["positive_rate"], census["negative_rate"], strict=True))
            rows += [(name, index, *pair) for index, pair in enumerate(pairs)]
            _polarity_panel(axes, pairs, floor, _colour(run.sae_names().index(name)))
            axes.set_title(f"{_plain(name)}\n{_counts(pairs)}", fontsize=8.5, linespacing=1.4)
            if i % columns == 0:
                axes.set_ylabel("firing rate, negative side")
            if i + columns >= len(names):
                axes.set_xlabel("firing rate, positive side")
    alt = (
        "One panel an SAE, one dot a latent: firing rate of the negative against the positive side."
    )
    return Plot("polarity", alt, figure, ("sae", "latent", "positive_rate", "negative_rate"), rows)


DRAWINGS: tuple[Callable[[Run], Plot | None], ...] = (training, reconstruction, polarity)


def l0_target(run: Run) -> list[float]:
    """L0 that training aimed at, from config.yaml: `l0_target`, else `k`; empty when unknown."""
    values = find_setting(run.config, "l0_target", "target_l0", "k")
    return sorted({float(value) for value in values if is_number(value)})


def position(rate: float, index: int, floor: int, side: int) -> float:
    """Where a firing rate stands on a panel's axis: log10, and a band below `floor` for zero.

    A latent's place across the zero band carries no meaning; it is spread by its index (golden
    ratio, another multiplier a side) so that thousands of one-sided latents do not hide each other.
    """
    if rate > 0:
        return math.log10(rate)
    return floor - 0.75 + 0.4 * (index * (0.6180339887, 0.7548776662)[side] % 1)


def _polarity_panel(
    axes: "Axes", pairs: Sequence[tuple[float, float]], floor: int, colour: str
) -> None:
    low, high = floor - 0.85, 0.15
    band = {"color": "#f3f4f6", "linewidth": 0, "zorder": 0}
    axes.axvspan(low, floor - 0.25, **band)
    axes.axhspan(low, floor - 0.25, **band)
    axes.plot([floor, 0], [floor, 0], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    xs = [position(pair[0], i, floor, 0) for i, pair in enumerate(pairs)]
    ys = [position(pair[1], i, floor, 1) for i, pair in enumerate(pairs)]
    dots = max(1.5, min(9.0, 6000 / max(len(pairs), 1)))
    axes.scatter(xs, ys, s=dots, color=colour, alpha=0.45, linewidths=0, zorder=2)
    # From 1 downwards; the decade next to the zero band would run into its label.
    ticks = [t for t in range(0, floor, -1) if t % (2 if floor < -3 else 1) == 0]
    labels = ["0", *("1" if tick == 0 else f"$10^{{{tick}}}$" for tick in ticks)]
    axes.set_xticks([floor - 0.55, *ticks], labels)
    axes.set_yticks([floor - 0.55, *ticks], labels)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def _counts(pairs: Sequence[tuple[float, float]]) -> str:
    both = sum(p > 0 and n > 0 for p, n in pairs)
    only_positive = sum(p > 0 and n == 0 for p, n in pairs)
    only_negative = sum(p == 0 and n > 0 for p, n in pairs)
    dead = len(pairs) - both - only_positive - only_negative
    return (
        f"both sides {both:,} · dead {dead:,}\n+ only {only_positive:,} · − only {only_negative:,}"
    )


def _l0_axis(axes: "Axes", values: Sequence[float]) -> None:
    """Room on both sides; at like L0 a difference of one latent must not fill the panel."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high > 8 * low:
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / 1.4, high * 1.4)
        axes.xaxis.set_major_formatter("{x:g}")
        return
    half = max(0.56 * (high - low), 0.12 * high) or 0.5
    axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)


def _label_in_margin(axes: "Axes", points: list[tuple[float, float, str, str]]) -> None:
    """Write the names right of the panel in the order of height, apart, each tied to its point."""
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
    for (x, y, label, colour), height in zip(points, heights, strict=True):
        axes.annotate(
            label,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.55},
        )


def _target_line(axes: "Axes", targets: list[float], horizontal: bool) -> None:
    for i, target in enumerate(targets):
        draw = axes.axhline if horizontal else axes.axvline
        label = "target L0" if i == 0 else None
        draw(target, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1, label=label)


def _panels(n_rows: int, n_columns: int, width: float, height: float) -> tuple["Figure", list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(n_rows, n_columns, squeeze=False).flat)


def _style() -> AbstractContextManager[None]:
    require_matplotlib()
    import matplotlib.style

    return matplotlib.style.context(["default", STYLE])


def _log_if_wide(axes: "Axes", values: Sequence[float]) -> None:
    """A logarithmic axis where the lines span more than a factor of 5 and none touches zero."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = [value for value in values if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thousands(value: float, _: Any = None) -> str:
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _any(lines: Sequence[dict[str, Any]], key: str) -> bool:
    return any(is_number(line.get(key)) for line in lines)


def _or_nan(value: Any) -> float:
    return float(value) if is_number(value) else math.nan


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _plain(name: str) -> str:
    return name.replace("$", r"\$")  # a dollar sign would start a formula
