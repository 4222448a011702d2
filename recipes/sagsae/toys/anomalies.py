"""Protocol B, directional anomalies: a known axis is seen from its other side.

In normal tokens every axis fires on its positive side. An anomaly is such a token with one firing
feature moved to the opposite side of its axis. SAEs are trained on data in which the opposite sides
are unseen, or rare, under a budget of latents given as a multiple of the number of axes. Two scores
detect anomalies: `latents` reads the code (which latents point to the opposite sides of the known
axes, and how strongly they fire; see `anomaly_scores`), `error` is the squared reconstruction
error, which needs no axes and cannot say what is anomalous. It follows figure 5 of arXiv
2605.28149.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from recipes.common.comparisons import Row, select
from recipes.sagsae.toys.cell import Observation, ToyCell, run
from recipes.sagsae.toys.figures import (
    INTERVAL_NOTE,
    SWEEP_HEADER,
    legend_below,
    sweep,
)
from recipes.sagsae.toys.metrics import anomaly_scores, detection_rate, roc_area
from recipes.sagsae.toys.training import Training, encode
from recipes.sagsae.toys.world import World, generator, with_anomalies
from sae_lens_bipolar.errors import require_number
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot

PROTOCOL = "anomalies"


@dataclass(frozen=True)
class Anomalies:
    """The sweep of protocol B."""

    contestants: tuple[str, ...]
    budgets: tuple[float, ...]  # H as a multiple of n_axes
    negative_shares: tuple[float, ...] = (0.0, 0.02)  # of firings in training; 0: unseen
    false_positives: float = 0.01  # rate at which detection is read off
    direction_cosine: float = 0.7  # least cosine at which a latent points to a known direction
    n_axes: int = 16
    d_in: int = 16
    active: float = 2.0  # true L0; also the target, while there is a latent per axis

    def __post_init__(self) -> None:
        require_number(self.false_positives, "false_positives", 0, maximum=1)
        require_number(self.direction_cosine, "direction_cosine", 0, maximum=1)

    def cells(self, seeds: Sequence[int], training: Training, n_eval: int) -> list[ToyCell]:
        """Every contestant at every budget and share with every seed."""
        return [
            ToyCell(
                PROTOCOL,
                name,
                World(self.n_axes, self.d_in, self.active, negative_share=share),
                budget * self.n_axes,
                self.active * min(1.0, budget),  # with fewer latents than axes, fewer can fire
                seed,
                training,
                n_eval,
                {"negative_share": share, "budget": budget},
                {"false_positives": self.false_positives, "cosine": self.direction_cosine},
            )
            for share in self.negative_shares
            for budget in self.budgets
            for name in self.contestants
            for seed in seeds
        ]


def run_cell(cell: ToyCell) -> dict[str, Any]:
    """One row: the common fields, and `roc_area_*` and `detection_*` of both scores."""
    return run(cell, measure)


def measure(cell: ToyCell, seen: Observation) -> dict[str, Any]:
    """Detection of anomalies among normal tokens, half and half."""
    usual = generator(replace(cell.world, negative_share=0.0))
    tokens = with_anomalies(usual.sample(cell.n_eval))
    normal, anomalous = (seen.truth.dictionary(features) for features in tokens)
    row = {}
    for name, score in (("latents", _by_latents), ("error", _by_error)):
        scores = score(cell, seen, anomalous), score(cell, seen, normal)
        row[f"roc_area_{name}"] = roc_area(*scores)
        row[f"detection_{name}"] = detection_rate(*scores, cell.options["false_positives"])
    return row


def _by_latents(cell: ToyCell, seen: Observation, x: torch.Tensor) -> torch.Tensor:
    latents, _ = encode(seen.sae, x)
    return anomaly_scores(latents, seen.sae.W_dec, -seen.truth.axes, cell.options["cosine"])


def _by_error(cell: ToyCell, seen: Observation, x: torch.Tensor) -> torch.Tensor:
    return (x - encode(seen.sae, x)[1]).pow(2).sum(1)


def figures(rows: Sequence[Row]) -> list[Plot]:
    """ROC area and detection against the budget (figure 5), one row of panels per share."""
    shares = sorted({row["negative_share"] for row in rows})
    columns = {
        "roc_area_latents": "ROC area, latents",
        "detection_latents": "detection at fixed false positives, latents",
        "roc_area_error": "ROC area, reconstruction error",
    }
    with drawing.style():
        figure, panels = drawing.panels(len(shares), 3, 12, 3.1 * len(shares) + 0.6)
        data = []
        for i, share in enumerate(shares):
            training = f"{share:.0%} of training firings" if share else "unseen in training"
            for axes, (field, title) in zip(
                panels[3 * i : 3 * i + 3], columns.items(), strict=True
            ):
                mine = select(rows, negative_share=share)
                data += sweep(axes, mine, "budget", field, f"{title}\n(anomalous sides {training})")
                axes.set_ylim(-0.04, 1.04)
                axes.set_xlabel("latent budget, H / axes")
        legend_below(figure, panels[0])
    return [
        Plot(
            "fig05_anomalies",
            f"Detection of directional anomalies against the budget of latents. {INTERVAL_NOTE}",
            figure,
            SWEEP_HEADER,
            data,
        )
    ]
