"""Figures of protocol C: geometry, one latent's histogram, consolidation over the sweeps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.common.comparisons import Row, select
from recipes.sagsae.toys.figures import (
    INTERVAL_NOTE,
    SWEEP_HEADER,
    contestants_in,
    legend_below,
    look,
    over_seeds,
    sweep,
)
from recipes.sagsae.toys.training import CONTESTANTS
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DENSITY = "features per dimension"


def figures(rows: Sequence[Row]) -> list[Plot]:
    """Figures 6 to 10, of those for which there are rows."""
    over_density = select(rows, kind="sweep", correlation=-1.0)
    base = {row["features_per_dimension"] for row in rows if "histogram" in row}
    over_rho = [
        row for row in rows if row["kind"] == "sweep" and row["features_per_dimension"] in base
    ]
    return [
        geometry([row for row in rows if "geometry" in row]),
        histogram([row for row in rows if "histogram" in row]),
        superposition(over_density),
        thresholded(over_density),
        correlation(over_rho),
    ]


def thresholds_in(rows: Sequence[Row]) -> list[str]:
    """The thresholds of the thresholded rate, as they end the names of fields."""
    prefix = "consolidation_"
    return [key.removeprefix(prefix) for key in rows[0] if key.startswith(prefix)]


def geometry(rows: Sequence[Row]) -> Plot:
    """True and learnt directions in the plane, of every seed, one panel per contestant."""
    names = contestants_in(rows)
    with drawing.style():
        figure, panels = drawing.panels(1, len(names), 2.5 * len(names), 3.7)
        data: list[tuple[Any, ...]] = []
        for axes, name in zip(panels, names, strict=True):
            mine = select(rows, contestant=name)
            points = _true_directions(axes, mine[0])
            data += [(name, "true", "", i, "", *point, "") for i, point in enumerate(points)]
            for row in mine:
                arrows = _learnt_directions(axes, row, look(name)["color"])
                data += [(name, "learnt", row["seed"], *arrow) for arrow in arrows]
            cosine = over_seeds(mine, "ray_cosine").mean
            axes.set_title(f"{CONTESTANTS[name].label}\nmean best cosine {cosine:.3f}")
        seeds = len({row["seed"] for row in rows})
        figure.supxlabel(
            "dots: true directions; arrows: sides of latents that fire on 0.1% of tokens or more, "
            f"of {seeds} seeds laid over each other",
            fontsize=9,
        )
    alt = (
        f"True directions and learnt decoder directions in the plane, {seeds} seeds. The cosine is "
        "that of a true direction with the nearest learnt one."
    )
    header = ("contestant", "what", "seed", "index", "side", "x", "y", "firing_rate")
    return Plot("fig06_geometry", alt, figure, header, data)


def _true_directions(axes: "Axes", row: Row) -> np.ndarray:
    """Draw the rays, the same with every seed; `[2 n_axes, 2]`."""
    true = np.asarray(row["geometry"]["axes"])
    true = np.concatenate([true, -true])
    axes.scatter(true[:, 0], true[:, 1], s=42, color="black", zorder=3)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    return true


def _learnt_directions(axes: "Axes", row: Row, hue: str) -> list[tuple[Any, ...]]:
    plane = row["geometry"]
    drawn: list[tuple[Any, ...]] = []
    for side, rates in ((1, plane["positive_rate"]), (-1, plane["negative_rate"])):
        for i, (direction, rate) in enumerate(zip(plane["W_dec"], rates, strict=True)):
            if rate < 1e-3:
                continue
            x, y = side * np.asarray(direction) / max(np.hypot(*direction), 1e-12)
            arrow = {"arrowstyle": "-|>", "color": hue, "linewidth": 1.2, "alpha": 0.5}
            axes.annotate("", (0.9 * x, 0.9 * y), (0, 0), arrowprops=arrow)
            drawn.append((i, "+" if side > 0 else "-", x, y, rate))
    return drawn


def histogram(rows: Sequence[Row]) -> Plot:
    """Values of one latent where it fires, of the first seed, one panel per contestant."""
    seed = min(row["seed"] for row in rows)
    names = contestants_in(rows)
    with drawing.style():
        figure, panels = drawing.panels(1, len(names), 2.7 * len(names), 2.9)
        data: list[tuple[Any, ...]] = []
        for axes, name in zip(panels, names, strict=True):
            (row,) = select(rows, contestant=name, seed=seed)
            values = row["histogram"]
            edges = np.linspace(-values["edge"], values["edge"], len(values["counts"]) + 1)
            axes.bar(
                edges[:-1],
                values["counts"],
                np.diff(edges),
                align="edge",
                color=look(name)["color"],
            )
            axes.axvline(0, color=drawing.GREY, linewidth=0.8)
            axes.set_yscale("log")  # a top-k latent fires near 0 more often than anywhere else
            smallest = values["smallest"]
            gap = "" if smallest is None else f"\nsmallest |z| {smallest:.2f}"
            axes.set_title(f"{CONTESTANTS[name].label}, latent {values['latent']}{gap}")
            axes.set_xlabel("z where it fires")
            data += [
                (name, values["latent"], *edge, count)
                for *edge, count in zip(edges[:-1], edges[1:], values["counts"], strict=True)
            ]
        panels[0].set_ylabel("tokens")
    alt = f"Histogram of the values of one latent of each SAE, seed {seed}."
    header = ("contestant", "latent", "from", "to", "tokens")
    return Plot("fig07_bi_jump_histogram", alt, figure, header, data)


def superposition(rows: Sequence[Row]) -> Plot:
    """Consolidation rate, latents per carried pair and R^2 against features per dimension."""
    least = thresholds_in(rows)[0]
    columns: dict[str, Any] = {
        "pair consolidation rate": "consolidation",
        f"pairs on two latents, each side ≥ {least}": f"two_latents_{least}",
        "R²": "r2",
    }
    return _sweeps("fig08_superposition", rows, "features_per_dimension", _DENSITY, columns)


def thresholded(rows: Sequence[Row]) -> Plot:
    """Thresholded consolidation rates against features per dimension."""
    columns = {
        f"consolidated, each side ≥ {threshold}": f"consolidation_{threshold}"
        for threshold in thresholds_in(rows)
    }
    return _sweeps("fig09_thresholded", rows, "features_per_dimension", _DENSITY, columns)


def correlation(rows: Sequence[Row]) -> Plot:
    """Consolidation rates, plain and thresholded, against the within-pair correlation."""
    least = thresholds_in(rows)[0]
    columns = {
        "pair consolidation rate": "consolidation",
        f"consolidated, each side ≥ {least}": f"consolidation_{least}",
        f"pairs on two latents, each side ≥ {least}": f"two_latents_{least}",
    }
    label = "within-pair correlation rho"
    return _sweeps("fig10_correlation", rows, "correlation", label, columns)


def _sweeps(name: str, rows: Sequence[Row], x: str, label: str, columns: dict[str, Any]) -> Plot:
    with drawing.style():
        figure, panels = drawing.panels(1, len(columns), 4 * len(columns), 3.8)
        data = []
        for axes, (title, field) in zip(panels, columns.items(), strict=True):
            data += sweep(axes, rows, x, field, title)
            axes.set_xlabel(label)
            axes.set_ylim(-0.04, 1.04)
        legend_below(figure, panels[0])
    alt = f"{', '.join(columns)} against {label}. {INTERVAL_NOTE}"
    return Plot(name, alt, figure, SWEEP_HEADER, data)
