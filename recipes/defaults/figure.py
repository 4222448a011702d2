"""The table of defaults as a figure: L0, R^2 and dead latents of every SAE, a panel per number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot, save

# Key and title of each number.
_PANELS = (
    ("l0", "L0 (latents per token)"),
    ("r2", "R², higher is better"),
    ("dead_fraction", "dead latents"),
)


def draw(rows: Sequence[Mapping[str, Any]], l0: int, off: float, dead: float, folder: Path) -> None:
    """Write `defaults.png` and, beside it, the numbers it shows.

    Args:
        rows: of `results/defaults.json`.
        l0: latents per token that were asked for.
        off, dead: the bars: how far L0 may be off, and how many latents may be dead.
        folder: of the two files.
    """
    hooks = list(dict.fromkeys(row["hook_name"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    with drawing.style():
        figure, grid = drawing.panels(1, len(_PANELS), 11, 0.9 + 0.24 * len(names))
        for axes, (key, title) in zip(grid, _PANELS, strict=True):
            for i, hook in enumerate(hooks):
                found = {row["name"]: row[key] for row in rows if row["hook_name"] == hook}
                heights = [names.index(name) + 0.18 * (i - (len(hooks) - 1) / 2) for name in found]
                look = {"color": drawing.colour(i), "marker": drawing.MARKERS[i], "markersize": 5}
                axes.plot(list(found.values()), heights, linestyle="", label=hook, **look)
            axes.set_title(title)
            axes.set_yticks(range(len(names)), names if axes is grid[0] else [""] * len(names))
            axes.set_ylim(len(names) - 0.5, -0.5)
        band = {"color": "#e5e7eb", "linewidth": 0, "zorder": 0}
        grid[0].axvspan(l0 * (1 - off), l0 * (1 + off), **band)
        grid[2].axvspan(0, dead, **band)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    header = ("sae", "hook", *(key for key, _ in _PANELS))
    data = [(r["name"], r["hook_name"], *(r[key] for key, _ in _PANELS)) for r in rows]
    alt = "Three dot charts, one line per SAE: its L0, its R² and its share of dead latents."
    save(Plot("defaults", alt, figure, header, data), folder)
