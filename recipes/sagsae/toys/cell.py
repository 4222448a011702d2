"""One cell of a toy protocol: one SAE trained in one world with one seed, and what it measures."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.saes.sae import SAE
from sae_lens.synthetic import mean_correlation_coefficient

from recipes.sagsae.toys.metrics import Carriers, carriers
from recipes.sagsae.toys.training import CONTESTANTS, Training, encode, sae_config, train
from recipes.sagsae.toys.world import GroundTruth, World, ground_truth
from sae_lens_bipolar.errors import require_choice, require_number

_EVALUATION_SEED = 10_000  # added to a cell's seed: its held-out tokens are the same for every SAE
DIGITS = 6  # significant ones, in result files


@dataclass(frozen=True)
class ToyCell:
    """Everything one cell depends on."""

    protocol: str
    contestant: str  # a key of CONTESTANTS
    world: World
    budget: float  # H, latents of a contestant of width 1
    l0: float  # target, in active latents per token
    seed: int
    training: Training = field(default_factory=Training)
    n_eval: int = 16_384  # held-out tokens
    point: Mapping[str, Any] = field(default_factory=dict)  # where in the sweep; goes into the row
    options: Mapping[str, Any] = field(default_factory=dict)  # of the protocol's measurements

    def __post_init__(self) -> None:
        require_choice(self.contestant, tuple(CONTESTANTS), "contestants")
        require_number(self.n_eval, "n_eval", 1)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "ToyCell":
        """The cell whose fields, as `asdict` gives them, are `params`, also after JSON."""
        world, training = World(**params["world"]), Training(**params["training"])
        return cls(**{**params, "world": world, "training": training})

    @property
    def d_sae(self) -> int:
        """Width of the SAE."""
        return CONTESTANTS[self.contestant].d_sae(self.budget)

    @property
    def name(self) -> str:
        """What tells this cell from all others of a run; a file name."""
        point = "_".join(f"{key}={value}" for key, value in self.point.items())
        plain = f"{self.protocol}_{point}_{self.contestant}_seed={self.seed}"
        return re.sub(r"[^\w.=-]+", "_", plain)


class Observation(NamedTuple):
    """A trained SAE on held-out tokens of its world."""

    sae: SAE[Any]
    truth: GroundTruth
    features: torch.Tensor  # intensities, [tokens, 2 n_axes]
    magnitudes: torch.Tensor  # features times gains: magnitudes along the rays
    latents: torch.Tensor  # [tokens, d_sae]

    def carriers(self) -> Carriers:
        """The carrier of every ray."""
        return carriers(self.latents, self.sae.W_dec, self.magnitudes, self.truth.rays)


def run(cell: ToyCell, measure: Callable[[ToyCell, Observation], dict[str, Any]]) -> dict[str, Any]:
    """Train the cell's SAE, and return a row of what every protocol wants and `measure` adds.

    Depends on `cell` alone: the global random state is set from its seed, and put back.
    """
    contestant = CONTESTANTS[cell.contestant]
    config = sae_config(contestant, cell.world.d_in, cell.d_sae, cell.l0, cell.training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        truth = ground_truth(cell.world, cell.seed)
        sae = train(config, truth, cell.training)
        torch.manual_seed(_EVALUATION_SEED + cell.seed)
        with torch.no_grad():
            row = _evaluate(cell, sae, truth, measure)
    return rounded(row)


def _evaluate(
    cell: ToyCell,
    sae: SAE[Any],
    truth: GroundTruth,
    measure: Callable[[ToyCell, Observation], dict[str, Any]],
) -> dict[str, Any]:
    features = truth.generator.sample(cell.n_eval)
    x = truth.dictionary(features)
    latents, xhat = encode(sae, x)
    explained = ExplainedVarianceCalculator()
    explained.add_batch(sae_output=xhat, hidden_acts=x)
    return {
        "protocol": cell.protocol,
        "contestant": cell.contestant,
        **cell.point,
        "seed": cell.seed,
        "train_samples": cell.training.steps * cell.training.batch_size,
        "d_sae": cell.d_sae,
        "l0_target": cell.l0,
        "true_l0": (features > 0).sum(1).float().mean().item(),
        "l0": (latents != 0).sum(1).float().mean().item(),
        "mse": (x - xhat).pow(2).mean().item(),
        "r2": explained.compute(),
        "dead_fraction": 1 - (latents != 0).any(dim=0).float().mean().item(),
        "mcc": mean_correlation_coefficient(sae.W_dec, truth.axes),
        **measure(cell, Observation(sae, truth, features, features * truth.gains, latents)),
    }


def rounded(value: Any) -> Any:
    """`value` with every float, however deep, at `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value
