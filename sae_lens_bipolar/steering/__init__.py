"""Steering: edits of activations and latents while a model runs, and finding latents to turn."""

from sae_lens_bipolar.steering.context import steering
from sae_lens_bipolar.steering.directions import difference_in_means
from sae_lens_bipolar.steering.edits import AblateDirection, AddVector, EditLatents
from sae_lens_bipolar.steering.find import (
    find_latents,
    find_latents_by_direction,
    find_latents_by_token,
)
from sae_lens_bipolar.steering.ranking import FoundLatent, Ranking
from sae_lens_bipolar.steering.units import ExtrapolationWarning, Scale, measure_scale

__all__ = [
    "AblateDirection",
    "AddVector",
    "EditLatents",
    "ExtrapolationWarning",
    "FoundLatent",
    "Ranking",
    "Scale",
    "difference_in_means",
    "find_latents",
    "find_latents_by_direction",
    "find_latents_by_token",
    "measure_scale",
    "steering",
]
