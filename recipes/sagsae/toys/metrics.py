"""What the toy protocols measure, pure functions of latents, directions and the truth.

A *ray* is a true feature's unit direction, `+d` or `-d`. The *part* of ray r that latent j carries,
over the tokens on which r's feature fires and its opposite does not, is

    part[r, j] = sum_t z_tj <W_dec_j, r>  /  sum_t a_tr              a: the true magnitude along r

so the parts of one ray add up to 1 where the decoded code reproduces it. A ray's *carrier* is the
latent with the largest part.
"""

from typing import NamedTuple

import torch
from scipy.stats import rankdata

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.polarity.splitting import split_latents


class Carriers(NamedTuple):
    """For every ray, `[2 n_axes]`: which latent carries it, on which side, and how much of it."""

    latent: torch.Tensor
    side: torch.Tensor  # +1, -1, or 0 if no latent carries any of it
    part: torch.Tensor


def carriers(
    latents: torch.Tensor, W_dec: torch.Tensor, magnitudes: torch.Tensor, rays: torch.Tensor
) -> Carriers:
    """The latent that carries most of each ray.

    Args:
        latents: signed latents z, `[tokens, d_sae]`.
        W_dec: decoder, `[d_sae, d_in]`.
        magnitudes: true magnitudes along the rays, gains included, `[tokens, 2 n_axes]`; positive
            sides before negative ones.
        rays: unit directions, `[2 n_axes, d_in]`.
    """
    alone = fires_alone(magnitudes).to(latents.dtype)
    total = alone.T @ latents  # [rays, d_sae]
    parts = total * (rays @ W_dec.T) / (alone * magnitudes).sum(0).clamp(min=1e-12)[:, None]
    part, latent = parts.max(dim=1)
    side = total.gather(1, latent[:, None])[:, 0].sign() * (part > 0)
    return Carriers(latent, side, part.clamp(min=0))


def fires_alone(magnitudes: torch.Tensor) -> torch.Tensor:
    """Whether a feature fires and its opposite does not, bool, shaped like `magnitudes`."""
    fires = magnitudes > 0
    return fires & ~fires.roll(magnitudes.shape[1] // 2, dims=1)


def consolidated(found: Carriers, threshold: float = 0.0) -> torch.Tensor:
    """Pairs carried by one latent, on opposite sides, `[n_axes]` bool.

    Args:
        found: of both sides of every pair.
        threshold: least part of each side that the latent must carry.
    """
    (a, b), (side_a, side_b), (part_a, part_b) = (value.chunk(2) for value in found)
    return (a == b) & (side_a * side_b < 0) & (torch.minimum(part_a, part_b) >= threshold)


def two_latents(found: Carriers, threshold: float) -> torch.Tensor:
    """Pairs whose sides are carried by two latents, each at least `threshold`, `[n_axes]` bool."""
    (a, b), _, (part_a, part_b) = (value.chunk(2) for value in found)
    return (a != b) & (torch.minimum(part_a, part_b) >= threshold)


def calibration_slopes(
    found: Carriers,
    latents: torch.Tensor,
    W_dec: torch.Tensor,
    magnitudes: torch.Tensor,
    gains: torch.Tensor,
    rays: torch.Tensor,
) -> torch.Tensor:
    """Slope of what a ray's carrier puts out along it on the feature's intensity, `[2 n_axes]`.

        s = a / g      y = side relu(side z_carrier) <W_dec_carrier, ray>
        slope = sum s y / sum s^2

    over the tokens on which the feature fires alone. A calibrated latent's slope is the true gain
    g; shrinkage and missed firings lower it. 0 where nothing carries the ray.
    """
    intensity = magnitudes / gains * fires_alone(magnitudes)
    own = (latents[:, found.latent] * found.side).relu() * found.side
    output = own * (W_dec[found.latent] * rays).sum(1)
    return (intensity * output).sum(0) / intensity.pow(2).sum(0).clamp(min=1e-12)


def anomaly_scores(
    latents: torch.Tensor, W_dec: torch.Tensor, rays: torch.Tensor, cosine: float
) -> torch.Tensor:
    """How strongly the code says that one of `rays` is present, `[tokens]`.

    The largest `relu(+-z_j) |W_dec_j|` over the sides of latents whose decoder direction,
    `+-W_dec_j`, has at least `cosine` with one of `rays`; 0 where none has.
    """
    norms = W_dec.norm(dim=1)
    directions = torch.cat([W_dec, -W_dec]) / norms.clamp(min=1e-12).repeat(2)[:, None]
    known = (directions @ rays.T).amax(dim=1) >= cosine
    return (split_latents(latents) * norms.repeat(2) * known).amax(dim=1)


def roc_area(anomalous: torch.Tensor, normal: torch.Tensor) -> float:
    """Probability that an anomaly scores above a normal token, ties counted half.

    Raises:
        DataError: if either is empty.
    """
    if not len(anomalous) or not len(normal):
        raise DataError("a ROC area needs scores of anomalous and of normal tokens, found none")
    n = len(anomalous)
    ranks = rankdata(torch.cat([anomalous, normal]).numpy())
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(normal)))


def detection_rate(anomalous: torch.Tensor, normal: torch.Tensor, false_positives: float) -> float:
    """Share of anomalies above the score that at most `false_positives` of normal tokens exceed."""
    threshold = torch.quantile(normal, 1 - false_positives, interpolation="higher")
    return (anomalous > threshold).float().mean().item()


def ray_cosines(latents: torch.Tensor, W_dec: torch.Tensor, rays: torch.Tensor) -> torch.Tensor:
    """Best cosine of each ray with a side of a latent that fires, `[n_rays]`; 0 if none fires."""
    directions = torch.nn.functional.normalize(torch.cat([W_dec, -W_dec]), dim=1)
    fires = (split_latents(latents) > 0).any(dim=0)
    cosines = rays @ directions[fires].T
    return cosines.amax(dim=1) if fires.any() else torch.zeros(len(rays))
