"""Protocol C, anticorrelated pairs: does one latent carry a pair of opposite features, or do two?

Three sweeps share a budget of one latent per pair (H): over superposition (features per dimension),
over the within-pair correlation rho, and one world in the plane for the picture. A pair is
*consolidated* if one latent is the carrier of both its rays, with opposite signs; in the
thresholded rate that latent must also carry a stated part of both. A non-negative latent cannot
consolidate, whatever it learns, so the share of pairs on two latents is given beside the rate. The
protocol follows figures 6 to 10 of arXiv 2605.28149.

In the plane one pair is on at a time, since two cannot be told apart there, and three axes stand 60
degrees apart. With four axes, 45 degrees apart, a latent's neighbours would project to 0.71 of
their magnitude, and with magnitudes that vary by 30% no threshold separates those from its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from recipes.sagsae.toys.cell import Observation, ToyCell, run
from recipes.sagsae.toys.metrics import consolidated, ray_cosines, two_latents
from recipes.sagsae.toys.training import Training
from recipes.sagsae.toys.world import World
from sae_lens_bipolar.errors import require_number

PROTOCOL = "pairs"
BINS = 60  # of the histogram of one latent


@dataclass(frozen=True)
class Pairs:
    """The sweeps of protocol C."""

    contestants: tuple[str, ...]
    features_per_dimension: tuple[float, ...]  # superposition, at rho = -1
    correlations: tuple[float, ...]  # rho, at base_features_per_dimension
    base_features_per_dimension: float = 2.0
    thresholds: tuple[float, ...] = (0.5, 0.7)  # parts of the thresholded rate
    d_in: int = 16
    active: float = 2.0  # pairs switched on in a token; the target is the world's L0
    plane_axes: int = 3  # pairs of the world with d_in = 2, where one pair is on at a time
    plane_lr: float | None = None  # of the plane's SAEs; None: that of all others
    plane_steps: int | None = None  # of the plane's SAEs; None: those of all others

    def __post_init__(self) -> None:
        for threshold in self.thresholds:
            require_number(threshold, "thresholds", 0, maximum=1, exclusive=True)

    def cells(self, seeds: Sequence[int], training: Training, n_eval: int) -> list[ToyCell]:
        """Every contestant at every point of the three sweeps with every seed."""
        points: dict[tuple[float, float], str] = {}
        for density in self.features_per_dimension:
            points.setdefault((density, -1.0), "sweep")
        for rho in self.correlations:
            points.setdefault((self.base_features_per_dimension, rho), "sweep")
        changes = {"lr": self.plane_lr, "steps": self.plane_steps}
        in_the_plane = replace(training, **{k: v for k, v in changes.items() if v is not None})
        worlds = [
            ("sweep", World(round(density * self.d_in / 2), self.d_in, self.active, rho), training)
            for density, rho in points
        ]
        plane = World(self.plane_axes, 2, active=1, one_at_a_time=True)
        worlds.append(("plane", plane, in_the_plane))
        return [
            ToyCell(
                PROTOCOL,
                name,
                world,
                world.n_axes,
                world.l0,
                seed,
                how,
                n_eval,
                {
                    "kind": kind,
                    "features_per_dimension": world.features_per_dimension,
                    "correlation": world.correlation,
                },
                {
                    "thresholds": self.thresholds,
                    "geometry": kind == "plane",
                    "histogram": kind == "sweep"
                    and world.correlation == -1
                    and world.features_per_dimension == self.base_features_per_dimension,
                },
            )
            for kind, world, how in worlds
            for name in self.contestants
            for seed in seeds
        ]


def run_cell(cell: ToyCell) -> dict[str, Any]:
    """One row: the common fields, the rates of pairs, and what the pictures need."""
    return run(cell, measure)


def measure(cell: ToyCell, seen: Observation) -> dict[str, Any]:
    """Shares of pairs carried by one latent or by two, and how well the rays are found."""
    found = seen.carriers()
    cosines = ray_cosines(seen.latents, seen.sae.W_dec, seen.truth.rays)
    row: dict[str, Any] = {
        "consolidation": _share(consolidated(found)),
        "ray_cosine": cosines.mean().item(),
    }
    for threshold in cell.options["thresholds"]:
        one, two = consolidated(found, threshold), two_latents(found, threshold)
        row[f"consolidation_{threshold:g}"] = _share(one)
        row[f"two_latents_{threshold:g}"] = _share(two)
    if cell.options["histogram"]:
        row["histogram"] = _histogram(seen)
    if cell.options["geometry"]:
        row["geometry"] = _geometry(seen)
    return row


def _share(pairs: torch.Tensor) -> float:
    return pairs.float().mean().item()


def _histogram(seen: Observation) -> dict[str, Any]:
    """Values of one latent where it fires, counted in bins symmetric about 0.

    The latent is the one that fires evenly on both sides most often, `min(count+, count-)`; among
    non-negative ones, the one that fires most often.
    """
    positive, negative = (seen.latents > 0).sum(0), (seen.latents < 0).sum(0)
    score = torch.minimum(positive, negative)
    latent = int((score if score.any() else positive).argmax())
    values = seen.latents[:, latent]
    values = values[values != 0]
    edge = float(values.abs().max()) if len(values) else 1.0
    return {
        "latent": latent,
        "edge": edge,
        "counts": torch.histc(values, BINS, -edge, edge).int().tolist(),
        "zeros": len(seen.latents) - len(values),
        "smallest": float(values.abs().min()) if len(values) else None,
    }


def _geometry(seen: Observation) -> dict[str, Any]:
    """True axes, decoder rows, and how often each latent fires on either side."""
    return {
        "axes": seen.truth.axes.tolist(),
        "W_dec": seen.sae.W_dec.tolist(),
        "positive_rate": (seen.latents > 0).float().mean(0).tolist(),
        "negative_rate": (seen.latents < 0).float().mean(0).tolist(),
    }
