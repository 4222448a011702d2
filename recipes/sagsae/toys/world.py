"""Synthetic activations whose true directions are known: antipodal pairs of features.

    x = sum_i (a_i+ - g_i a_i-) d_i          a+, a- >= 0, d_i unit vectors, g_i > 0

Pair `i` has the features `+d_i` and `-d_i`; `g_i` is the gain of its negative side. Each token
switches a pair on with probability `active / n_axes`, or exactly one pair; within a pair that is
on, the two sides fire as a Gaussian copula with correlation `rho` says: at -1 exactly one of them,
at 0 independently. SAELens's generator and dictionary (sae_lens.synthetic) make the data; only
their arguments are set here. Features are ordered as in the polarity split: n positive sides, then
n negative ones.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    LowRankCorrelationMatrix,
    orthogonal_initializer,
)
from torch.nn.functional import one_hot

from sae_lens_bipolar.errors import ConfigError, require_number


@dataclass(frozen=True)
class World:
    """What the data look like."""

    n_axes: int  # antipodal pairs; 2 n_axes features
    d_in: int  # dimensions of the activations
    active: float = 2.0  # pairs switched on in a token, on average
    correlation: float = -1.0  # rho within a pair that is on, in [-1, 0]
    negative_share: float = 0.5  # probability of the negative side in a pair that is on
    negative_gains: tuple[float, ...] = (1.0,)  # g per axis, repeated until every axis has one
    magnitude_std: float = 0.3  # of a firing feature, around the mean 1
    one_at_a_time: bool = False  # exactly one pair is on in every token; active must be 1

    def __post_init__(self) -> None:
        require_number(self.n_axes, "n_axes", 1)
        require_number(self.d_in, "d_in", 1)
        require_number(self.active, "active", 0, maximum=self.n_axes, exclusive=True)
        require_number(self.correlation, "correlation", -1, maximum=0)
        require_number(self.negative_share, "negative_share", 0, maximum=1)
        require_number(self.magnitude_std, "magnitude_std", 0)
        for gain in self.negative_gains:
            require_number(gain, "negative_gains", 0, exclusive=True)
        if self.one_at_a_time and self.active != 1:
            raise ConfigError(
                f"one_at_a_time=True switches on one pair per token, so active must be 1, got "
                f"active={self.active}"
            )
        if self.correlation != -1 and self.negative_share != 0.5:
            raise ConfigError(
                f"negative_share={self.negative_share} needs correlation=-1, got "
                f"{self.correlation}: with other correlations both sides are equally likely"
            )

    @property
    def features_per_dimension(self) -> float:
        """Superposition: `2 n_axes / d_in`."""
        return 2 * self.n_axes / self.d_in

    @property
    def l0(self) -> float:
        """Mean number of axes along which a token is not 0: the L0 of a right code.

        If both sides of a pair fire, `x` holds their difference only; so this is `active` times
        `1 - P(neither fires)`, and for a copula of two fair sides `P(neither) = 1/4 + asin(rho) / 2
        pi`.
        """
        if self.correlation == -1:
            return self.active
        return self.active * (0.75 - math.asin(self.correlation) / (2 * math.pi))


class GroundTruth(NamedTuple):
    """A world's fixed directions and its stream of features."""

    axes: torch.Tensor  # d_i, [n_axes, d_in]
    gains: torch.Tensor  # of every feature: ones, then g, [2 n_axes]
    dictionary: FeatureDictionary  # features [batch, 2 n_axes] -> activations [batch, d_in]
    generator: ActivationGenerator  # n -> features [n, 2 n_axes], >= 0

    @property
    def rays(self) -> torch.Tensor:
        """Unit vectors of the features, `[d; -d]`, `[2 n_axes, d_in]`."""
        return torch.cat([self.axes, -self.axes])


def ground_truth(world: World, seed: int) -> GroundTruth:
    """The directions of `seed` and the generator; which features fire is torch's global state."""
    axes = _axes(world, seed)
    repeats = -(-world.n_axes // len(world.negative_gains))
    negative = torch.tensor(world.negative_gains * repeats)[: world.n_axes]
    gains = torch.cat([torch.ones(world.n_axes), negative])

    def both_sides(dictionary: FeatureDictionary) -> None:
        dictionary.feature_vectors.data = torch.cat([axes, -axes]) * gains[:, None]

    dictionary = FeatureDictionary(2 * world.n_axes, world.d_in, initializer=both_sides)
    return GroundTruth(axes, gains, dictionary, generator(world))


def _axes(world: World, seed: int) -> torch.Tensor:
    """Unit vectors `[n_axes, d_in]`, far apart as lines."""
    if world.d_in == 2:  # the initializer's sum of squared cosines is blind to angles in the plane
        angles = torch.arange(world.n_axes) * (math.pi / world.n_axes)
        return torch.stack([angles.cos(), angles.sin()], dim=1)
    spread = FeatureDictionary(
        world.n_axes, world.d_in, initializer=orthogonal_initializer(), seed=seed
    )
    return spread.feature_vectors.detach()


def generator(world: World) -> ActivationGenerator:
    """The stream of features of a world; it has no seed of its own."""
    n, share = world.n_axes, world.negative_share
    # A pair's two standard normals, c e + s h and -c e + s h', have correlation -c^2; SAELens asks
    # for s > 0, also where rho is -1.
    loading = math.sqrt(-world.correlation) * torch.eye(n)
    own = torch.full((2 * n,), max(1 + world.correlation, 1e-12))

    def switch_pairs(features: torch.Tensor) -> torch.Tensor:
        if world.one_at_a_time:
            on = one_hot(torch.randint(n, (len(features),)), n)
        else:
            on = torch.rand(len(features), n) < world.active / n
        return features * on.repeat(1, 2)

    return ActivationGenerator(
        num_features=2 * n,
        firing_probabilities=torch.cat([torch.full((n,), 1 - share), torch.full((n,), share)]),
        std_firing_magnitudes=world.magnitude_std,
        modify_activations=switch_pairs,
        correlation_matrix=LowRankCorrelationMatrix(torch.cat([loading, -loading]), own),
    )


def with_anomalies(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens with one firing feature moved to the opposite side of its axis.

    Args:
        features: `[batch, 2 n_axes]`, non-negative.

    Returns:
        normal: the tokens in which some feature fires, `[n, 2 n_axes]`.
        anomalous: the same tokens, each with one firing feature, drawn evenly, moved.
    """
    normal = features[(features > 0).any(dim=1)]
    moved = torch.multinomial((normal > 0).float(), 1)  # [n, 1]
    n_axes = features.shape[1] // 2
    opposite = (moved + n_axes) % (2 * n_axes)
    anomalous = normal.clone()
    anomalous.scatter_(1, moved, 0.0)
    anomalous.scatter_add_(1, opposite, normal.gather(1, moved))
    return normal, anomalous
