"""Protocol A, the polarity dial: signed axes whose two sides have different gains.

Every axis has gain 1 on its positive side and a setting of the dial, `g`, on its negative side. The
SAE is swept over L0. The protocol measures the reconstruction error and, per side, the calibration
slope of each ray's carrier against the true gain. It follows figures 4 and 11 of arXiv 2605.28149,
whose settings are not public; the dial's settings, widths and sizes are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from recipes.common.comparisons import Row, bootstrap, select
from recipes.sagsae.toys.cell import Observation, ToyCell, run
from recipes.sagsae.toys.figures import (
    INTERVAL_NOTE,
    SWEEP_HEADER,
    contestants_in,
    curve,
    legend_below,
    over_seeds,
)
from recipes.sagsae.toys.metrics import calibration_slopes
from recipes.sagsae.toys.training import Training
from recipes.sagsae.toys.world import World
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot

PROTOCOL = "polarity_dial"
SIDES = ("positive", "negative")


@dataclass(frozen=True)
class PolarityDial:
    """The sweep of protocol A."""

    contestants: tuple[str, ...]
    l0_targets: tuple[float, ...]  # the sparsity sweep
    dial: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)  # gains of negative sides
    n_axes: int = 24  # also H, the budget of latents
    d_in: int = 16
    active: float = 2.0  # true L0

    def cells(self, seeds: Sequence[int], training: Training, n_eval: int) -> list[ToyCell]:
        """Every contestant at every L0 target with every seed."""
        world = World(self.n_axes, self.d_in, self.active, negative_gains=self.dial)
        return [
            ToyCell(PROTOCOL, name, world, self.n_axes, l0, seed, training, n_eval, {"target": l0})
            for l0 in self.l0_targets
            for name in self.contestants
            for seed in seeds
        ]


def run_cell(cell: ToyCell) -> dict[str, Any]:
    """One row: the common fields, `gains` and `slopes` ray by ray, `calibration_error`."""
    return run(cell, measure)


def measure(cell: ToyCell, seen: Observation) -> dict[str, Any]:
    """Calibration of every ray's carrier; the error is the mean of `|slope / gain - 1|`."""
    slopes = calibration_slopes(
        seen.carriers(),
        seen.latents,
        seen.sae.W_dec,
        seen.magnitudes,
        seen.truth.gains,
        seen.truth.rays,
    )
    return {
        "gains": seen.truth.gains.tolist(),
        "slopes": slopes.tolist(),
        "calibration_error": (slopes / seen.truth.gains - 1).abs().mean().item(),
    }


def nearest_to_truth(rows: Sequence[Row]) -> list[Row]:
    """The rows of the L0 target nearest to the true L0."""
    target = min((row["target"] for row in rows), key=lambda t: abs(t - rows[0]["true_l0"]))
    return select(rows, target=target)


def figures(rows: Sequence[Row]) -> list[Plot]:
    """MSE against L0 with slopes against gain (figure 4), and the slopes' CDF (figure 11)."""
    return [_dial(rows), _cdf(nearest_to_truth(rows))]


def _dial(rows: Sequence[Row]) -> Plot:
    from matplotlib.ticker import LogLocator

    with drawing.style():
        figure, (left, middle, right) = drawing.panels(1, 3, 12, 4)
        data = []
        for name in contestants_in(rows):
            mine = select(rows, contestant=name)
            groups = [select(mine, target=t) for t in sorted({row["target"] for row in mine})]
            l0 = [over_seeds(group, "l0") for group in groups]
            mse = [over_seeds(group, "mse") for group in groups]
            curve(left, name, [x.mean for x in l0], mse)
            data += [
                ("MSE against L0", name, x.mean, len(group), *y)
                for x, y, group in zip(l0, mse, groups, strict=True)
            ]
        targets = sorted({row["target"] for row in rows})
        left.set(title="reconstruction MSE", xlabel="measured L0", xscale="log", yscale="log")
        left.set_xticks(targets, [f"{target:g}" for target in targets])
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.minorticks_off()
        best = nearest_to_truth(rows)
        for axes, side in ((middle, "negative"), (right, "positive")):
            data += _slope_curves(axes, best, side)
        gains = sorted(set(best[0]["gains"]))
        for axes in (middle, right):
            axes.axhline(1, color=drawing.GREY, linewidth=0.8)
            axes.set_ylim(0, 1.1)
            axes.set_xscale("log", base=2)
            axes.set_xticks(gains, [f"{gain:g}" for gain in gains])
        middle.set(
            title="calibration slope / true gain, negative side",
            xlabel="true gain of the negative side",
        )
        right.set(
            title="calibration slope, positive side (gain 1)",
            xlabel="true gain of the negative side",
        )
        legend_below(figure, middle)
    return Plot(
        "fig04_polarity_dial",
        "Reconstruction error against L0, and calibration slopes over true gains of both sides "
        "against the dial (the gain of the negative side) "
        f"at L0 target {best[0]['target']:g}. {INTERVAL_NOTE}",
        figure,
        SWEEP_HEADER,
        data,
    )


def slopes_at(row: Row, side: str, gain: float) -> list[float]:
    """Slopes of one side of the axes whose negative side has this gain."""
    n = len(row["gains"]) // 2
    offset = n * SIDES.index(side)
    return [row["slopes"][offset + i] for i in range(n) if row["gains"][n + i] == gain]


def _slope_curves(axes: Any, rows: Sequence[Row], side: str) -> list[tuple[Any, ...]]:
    drawn = []
    n = len(rows[0]["gains"]) // 2
    gains = sorted(set(rows[0]["gains"][n:]))
    for name in contestants_in(rows):
        mine = select(rows, contestant=name)
        true = gains if side == "negative" else [1.0] * len(gains)
        ys = [
            over_seeds(mine, lambda row, g=g, t=t: fmean(slopes_at(row, side, g)) / t)
            for g, t in zip(gains, true, strict=True)
        ]
        curve(axes, name, gains, ys)
        panel = f"slope over true gain of the {side} side against the dial"
        drawn += [(panel, name, g, len(mine), *y) for g, y in zip(gains, ys, strict=True)]
    return drawn


def _cdf(rows: Sequence[Row]) -> Plot:
    grid = np.linspace(0, 1.2, 61)
    with drawing.style():
        figure, panels = drawing.panels(1, 2, 9, 4)
        data = []
        for axes, side in zip(panels, SIDES, strict=True):
            for name in contestants_in(rows):
                shares = [_ecdf(row, side, grid) for row in select(rows, contestant=name)]
                ys = [bootstrap([share[i] for share in shares]) for i in range(len(grid))]
                curve(axes, name, list(grid), ys, marker=None)
                data += [
                    (side, name, float(x), len(shares), *y) for x, y in zip(grid, ys, strict=True)
                ]
            axes.axvline(1, color=drawing.GREY, linewidth=0.8)
            axes.set(title=f"{side} sides", xlabel="calibration slope / true gain")
        panels[0].set_ylabel("share of rays")
        legend_below(figure, panels[0])
    return Plot(
        "fig11_calibration_cdf",
        "Cumulative distribution of calibration slopes over true gains, at L0 target "
        f"{rows[0]['target']:g}. {INTERVAL_NOTE}",
        figure,
        SWEEP_HEADER,
        data,
    )


def _ecdf(row: Row, side: str, grid: np.ndarray) -> list[float]:
    n = len(row["gains"]) // 2
    part = slice(0, n) if side == "positive" else slice(n, None)
    relative = np.asarray(row["slopes"][part]) / np.asarray(row["gains"][part])
    return [float((relative <= x).mean()) for x in grid]
