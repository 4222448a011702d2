"""The figures of a run, each with the data it shows; drawn without pyplot's global state.

A drawing function returns a `Plot`; `save` writes its PNG and, beside it, its CSV.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.rundir import Run, find_setting
from sae_lens_bipolar.reports.tables import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 170


@dataclass(frozen=True)
class Plot:
    """A figure, a description for readers who cannot see it, and the rows that it shows."""

    name: str
    alt: str
    figure: "Figure"
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def save(plot: Plot, folder: Path) -> None:
    """Write `<name>.png` and `<name>.csv` (the plotted data, every digit) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with drawing.style():
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
    with drawing.style():
        figure, (left, right) = drawing.panels(1, 2, 10.4, 3.5)
        rows = []
        for i, name in enumerate(run.sae_names()):
            lines = [line for line in run.metrics if line["sae"] == name]
            tokens = [line["n_tokens"] for line in lines]
            for axes, key in ((left, metric), (right, "l0")):
                values = [drawing.or_nan(line.get(key)) for line in lines]
                # Later lines are thinner: TopK and AbsTopK share one L0, and both should show.
                width = max(1.2, 2.6 - 0.45 * i)
                look = {
                    "color": drawing.colour(i),
                    "linestyle": drawing.DASHES[i % len(drawing.DASHES)],
                }
                axes.plot(tokens, values, label=drawing.plain(name), linewidth=width, **look)
            rows += [(name, x["step"], x["n_tokens"], x.get(metric), x["l0"]) for x in lines]
        titles = {metric: names[metric], "l0": "L0 (latents per token)"}
        for axes, (key, title) in zip((left, right), titles.items(), strict=True):
            axes.set_title(title)
            axes.set_xlabel("training tokens")
            axes.xaxis.set_major_formatter(drawing.short_count)
            drawing.log_if_wide(axes, [drawing.or_nan(line.get(key)) for line in run.metrics])
        drawing.target_line(right, l0_target(run), horizontal=True)
        # One legend for both panels: it holds the target too, which only the right one draws.
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    alt = f"Two line charts against training tokens, {names[metric]} and L0, with one line per SAE."
    return Plot("training", alt, figure, ("sae", "step", "n_tokens", metric, "l0"), rows)


def reconstruction(run: Run) -> Plot | None:
    """nMSE and loss recovered against L0 on held-out text; None without summary.json.

    Each point carries the name of its SAE. With more than 8 SAEs, one line per architecture and
    width is drawn instead, labelled once.
    """
    if not run.summary:
        return None
    groups = _groups(run.summary)
    with drawing.style():
        figure, grid = drawing.panels(1, 2, 10.4, max(3.3, 0.26 * len(groups) + 1.2))
        titles = {
            "nmse": "nMSE, lower is better",
            "loss_recovered": "Loss recovered, higher is better",
        }
        for axes, (key, title) in zip(grid, titles.items(), strict=True):
            axes.set_title(title)
            axes.set_xlabel("L0 (latents per token)")
            labels, values = [], []
            for i, (label, rows) in enumerate(groups.items()):
                points = [(r["l0"], r[key]) for r in rows if is_number(r["l0"])]
                points = sorted(point for point in points if is_number(point[1]))
                if not points:
                    continue
                xs, ys = zip(*points, strict=True)
                look = {
                    "marker": drawing.MARKERS[i % len(drawing.MARKERS)],
                    "color": drawing.colour(i),
                }
                axes.plot(xs, ys, linewidth=1, markersize=7, **look)
                labels.append((xs[-1], ys[-1], drawing.plain(label), drawing.colour(i)))
                values += xs
            drawing.l0_axis(axes, values)
            drawing.label_in_margin(axes, labels)
            drawing.target_line(axes, l0_target(run), horizontal=False)
    keys = ("l0", "nmse", "loss_recovered")
    rows = [(row["name"], row["architecture"], *(row[key] for key in keys)) for row in run.summary]
    alt = (
        "Two charts of held-out text, nMSE against L0 and loss recovered against L0, with one "
        "point per SAE."
    )
    return Plot("reconstruction", alt, figure, ("sae", "architecture", *keys), rows)


def polarity(run: Run) -> Plot | None:
    """Firing rate, negative against positive side, one panel per SAE; None without a census."""
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
    with drawing.style():
        columns = min(len(names), 4 if len(names) in (4, 7, 8) or len(names) > 9 else 3)
        n_rows = math.ceil(len(names) / columns)
        width = 10.4 if columns > 2 else 4.4 * columns
        figure, grid = drawing.panels(
            n_rows, columns, width, 0.3 + n_rows * (width / columns + 0.35)
        )
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        rows: list[tuple[Any, ...]] = []
        for i, (axes, name) in enumerate(zip(grid, names, strict=False)):
            census = run.census[name]
            pairs = list(zip(census["positive_rate"], census["negative_rate"], strict=True))
            rows += [(name, index, *pair) for index, pair in enumerate(pairs)]
            _polarity_panel(axes, pairs, floor, drawing.colour(run.sae_names().index(name)))
            axes.set_title(
                f"{drawing.plain(name)}\n{_counts(pairs)}", fontsize=8.5, linespacing=1.4
            )
            if i % columns == 0:
                axes.set_ylabel("firing rate, negative side")
            if i + columns >= len(names):
                axes.set_xlabel("firing rate, positive side")
    alt = (
        "One scatter chart per SAE with one dot per latent: how often it fires on its negative "
        "side against how often on its positive side."
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
    ratio, another multiplier per side), so that thousands of one-sided latents do not overlap.
    """
    if rate > 0:
        return math.log10(rate)
    return floor - 0.75 + 0.4 * (index * (0.6180339887, 0.7548776662)[side] % 1)


def _polarity_panel(
    axes: "Axes", pairs: Sequence[tuple[float, float]], floor: int, hue: str
) -> None:
    low, high = floor - 0.85, 0.15
    band = {"color": "#f3f4f6", "linewidth": 0, "zorder": 0}
    axes.axvspan(low, floor - 0.25, **band)
    axes.axhspan(low, floor - 0.25, **band)
    axes.plot(
        [floor, 0], [floor, 0], color=drawing.GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1
    )
    xs = [position(pair[0], i, floor, 0) for i, pair in enumerate(pairs)]
    ys = [position(pair[1], i, floor, 1) for i, pair in enumerate(pairs)]
    dots = max(1.5, min(9.0, 6000 / max(len(pairs), 1)))
    axes.scatter(xs, ys, s=dots, color=hue, alpha=0.45, linewidths=0, zorder=2)
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


def _groups(summary: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The SAEs by name, or where they are many by architecture, and width if there are several."""
    groups: dict[str, list[dict[str, Any]]] = {}
    several = len({row["d_sae"] for row in summary}) > 1
    for row in summary:
        kind = f"{row['architecture']}, {row['d_sae']}" if several else row["architecture"]
        groups.setdefault(row["name"] if len(summary) <= 8 else kind, []).append(row)
    return groups


def _any(lines: Sequence[dict[str, Any]], key: str) -> bool:
    return any(is_number(line.get(key)) for line in lines)
