"""Whether one latent carries two antonyms on its two sides, and whether two latents share an axis.

With `z_a` and `z_b` a latent's values on the words of a pair, over templates:

    flip_i       = max(share of templates with z_a > 0 > z_b, share with z_a < 0 < z_b)
    a-only       fires on a in most templates and on b in few; b-only the other way round

Latents are chosen on half of the templates and scored on the other half, both ways round. Chance:
the two words exchanged at random within templates, the largest flip over all latents.
"""

from collections.abc import Sequence
from typing import Any

import torch

from recipes.abstopk.steering_statistics import benjamini_hochberg

_MOST, _FEW = 0.8, 0.2  # shares of templates on which a one-sided latent fires, and does not


def flips(signs_a: torch.Tensor, signs_b: torch.Tensor) -> torch.Tensor:
    """1 where a is above 0 and b below, -1 the other way round, else 0: `[templates, latents]`."""
    opposed = (signs_a * signs_b) < 0
    return torch.where(opposed, signs_a, torch.zeros_like(signs_a)).float()


def held_out_flip(flip: torch.Tensor) -> tuple[float, int, int]:
    """The flip of the latent chosen on the other half of the templates, the mean of both ways.

    Returns:
        It; the latent of largest flip over all templates; and its orientation, 1 for a above 0.
    """
    halves = (flip[0::2], flip[1::2])
    scores = []
    for chosen_on, scored_on in (halves, halves[::-1]):
        latent, side = _largest(chosen_on)
        scores.append((scored_on[:, latent] == side).float().mean().item())
    latent, side = _largest(flip)
    return sum(scores) / 2, latent, side


def permutation_p(flip: torch.Tensor, draws: int, generator: torch.Generator) -> float:
    """Share of random exchanges of the two words after which some latent flips as often."""
    active = flip[:, (flip != 0).any(0)]
    if active.shape[1] == 0:
        return 1.0
    swaps = torch.randint(2, (draws, len(flip)), generator=generator) * 2.0 - 1
    total = active.abs().sum(0)

    def largest(net: torch.Tensor) -> torch.Tensor:
        return ((total + net.abs()) / 2).amax(-1)

    observed = largest(active.sum(0))
    return (1 + int((largest(swaps @ active) >= observed - 1e-6).sum())) / (1 + draws)


def fragmentation(
    signs_a: torch.Tensor, signs_b: torch.Tensor, directions: torch.Tensor
) -> float | None:
    """Cosine of the decoder rows of an a-only and a b-only latent; None where there are not both.

    Sides are chosen on half of the templates and must hold on the other half.

    Args:
        signs_a, signs_b: `[templates, latents]` in {-1, 0, 1}.
        directions: `[latents, d_in]`, of length 1.
    """
    a, b = signs_a != 0, signs_b != 0
    found = []
    for mine, other in ((a, b), (b, a)):
        halves = [(mine[i::2].float().mean(0), other[i::2].float().mean(0)) for i in (0, 1)]
        only = halves[0][0] - halves[0][1]
        latent = int(only.argmax())
        if any(half[0][latent] < _MOST or half[1][latent] > _FEW for half in halves):
            return None
        sign = torch.sign((signs_a if mine is a else signs_b)[:, latent].sum())
        found.append(sign * directions[latent])
    return float(found[0] @ found[1])


def of_pairs(
    signs: torch.Tensor,
    pairs: Sequence[tuple[int, int]],
    directions: torch.Tensor,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every pair's flip, its p-value (also adjusted over pairs), and its fragmentation.

    Args:
        signs: of the latents on every word, `[templates, words, reads, latents]`, in {-1, 0, 1}.
        pairs: indices of two words each.
        directions: decoder rows of length 1, `[latents, d_in]`.
        draws: random exchanges behind a p-value.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for a, b in pairs:
        # A latent that flips at the word and one that flips later are two ways to carry a pair.
        flip = flips(signs[:, a], signs[:, b]).flatten(1)
        score, latent, side = held_out_flip(flip)
        at_word = (signs[:, a, 0], signs[:, b, 0])
        found.append(
            {
                "flip": score,
                "latent": latent % signs.shape[-1],
                "read": latent // signs.shape[-1],
                "side": side,
                "p": permutation_p(flip, draws, generator),
                "cosine": fragmentation(*at_word, directions),
                "one_only": _fires_on_one_only(*at_word),
            }
        )
    for row, p in zip(found, benjamini_hochberg([row["p"] for row in found]), strict=True):
        row["p_adjusted"] = p
    return found


def _largest(flip: torch.Tensor) -> tuple[int, int]:
    sides = torch.stack([(flip > 0).float().mean(0), (flip < 0).float().mean(0)])
    best = int(sides.argmax())
    return best % flip.shape[1], 1 if best < flip.shape[1] else -1


def _fires_on_one_only(signs_a: torch.Tensor, signs_b: torch.Tensor) -> bool:
    """Whether some latent fires on one word in most templates and on the other in few."""
    a, b = (signs_a != 0).float().mean(0), (signs_b != 0).float().mean(0)
    return bool((((a >= _MOST) & (b <= _FEW)) | ((b >= _MOST) & (a <= _FEW))).any())
