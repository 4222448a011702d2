"""The signed latent as a causal dial: what turning it does to the tokens its two sides announce.

The readout of a latent is taken from text, not from its own decoder row, which any direction moves
as it should: the tokens that follow its positive firings against those that follow its negative
ones (of a latent with one side: those that follow other tokens). `D(t)` is the mean logit of the
first less that of the second, at the last token of neutral contexts, less the same at t = 0.

    monotone        Spearman's correlation of t and D(t) is 0.9 or more
    antisymmetry    1 - |D(1) + D(-1)| / (|D(1)| + |D(-1)|)
    right sign      D(1) > 0 > D(-1)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sae_lens.saes.sae import SAE

from recipes.abstopk.figure1_passes import Contexts
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.steering import EditLatents
from sae_lens_bipolar.steering.units import Scale

MONOTONE = 0.9  # Spearman's correlation from which a dial counts as monotone


def readouts(
    z: torch.Tensor, following: torch.Tensor, latents: Sequence[int], n: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each latent `n` tokens that its positive side announces, and `n` of its negative side.

    A token's score is the difference of its shares after either side over the root of its mean
    share, so that frequent and rare tokens have a chance.

    Args:
        z: `[tokens, d_sae]`, without sinks.
        following: the token after each, `[tokens]`.
        latents: those asked for.
    """
    size = int(following.max()) + 1
    base = torch.bincount(following, minlength=size).float()
    found = []
    for latent in latents:
        sides = [z[:, latent] > 0, z[:, latent] < 0]
        counts = [
            torch.bincount(following[side], minlength=size).float() if side.any() else base
            for side in sides
        ]
        plus, minus = (one / one.sum() for one in counts)
        score = (plus - minus) / (plus + minus + 1e-4).sqrt()
        order = score.argsort(descending=True)
        found.append((order[:n], order[-n:].flip(0)))
    return found


def curves(
    contexts: Contexts,
    values: Sequence[float],
    read: Sequence[tuple[torch.Tensor, torch.Tensor]],
    changed: Callable[[int, float], torch.Tensor],
    some: Sequence[int],
) -> torch.Tensor:
    """`D(t)` under each latent's own readout and under the next one's, `[some, 2, values]`.

    Args:
        values: of t, 0 among them.
        read: a readout per latent.
        changed: from the number of a latent in `read` and t, the edited activations
            `[contexts, d_in]`.
        some: numbers of the latents in `read` that are turned now.
    """
    found = []
    for i in some:
        x = torch.stack([contexts.x if t == 0 else changed(i, t) for t in values])
        final = contexts.final(x)
        rows = []
        for plus, minus in (read[i], read[(i + 1) % len(read)]):
            d = contexts.mean_logit(final, plus) - contexts.mean_logit(final, minus)
            rows.append(d - d[list(values).index(0)])
        found.append(torch.stack(rows))
    return torch.stack(found)


def turned(sae: SAE[Any], census: Census, contexts: Contexts, latents: Sequence[int]) -> Any:
    """`changed` of `curves`: each latent dialled (a side it lacks borrows the other's reach)."""

    def changed(i: int, t: float) -> torch.Tensor:
        edit = EditLatents(sae, {latents[i]: t}, mode="dial", scale=Scale(census))
        return edit.apply(contexts.x)

    return changed


def random_directions(
    sae: SAE[Any], census: Census, contexts: Contexts, latents: Sequence[int], seed: int
) -> Any:
    """`changed` of `curves`: a random direction, as long as each dialled latent's at that side."""
    drawn = torch.randn(len(latents), contexts.x.shape[1], generator=_seeded(seed))
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    scale = Scale(census)

    def changed(i: int, t: float) -> torch.Tensor:
        reach, _ = scale.reach(latents[i], 1 if t > 0 else -1)
        length = reach * sae.W_dec[latents[i]].norm().item()
        return contexts.x + t * length * drawn[i]

    return changed


def measures(d: torch.Tensor, values: Sequence[float]) -> dict[str, list[float]]:
    """Of each curve, `[latents, values]`: Spearman's correlation, antisymmetry, right sign."""
    t = torch.tensor(values)
    first, last = d[:, int(t.argmin())], d[:, int(t.argmax())]
    size = first.abs() + last.abs()
    even = 1 - (first + last).abs() / size.clamp_min(1e-12)
    return {
        "spearman": _spearman(d, t).tolist(),
        "antisymmetry": torch.where(size > 0, even, torch.zeros_like(even)).tolist(),
        "right_sign": ((last > 0) & (first < 0)).float().tolist(),
    }


def _spearman(d: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of every row of `d` with `t`; a row without any change counts 0."""
    ranks = d.argsort(1).argsort(1).double()
    order = t.argsort().argsort().double()
    ranks, order = ranks - ranks.mean(1, keepdim=True), order - order.mean()
    found = (ranks * order).sum(1) / (ranks.norm(dim=1) * order.norm())
    return torch.where(d.std(1) > 0, found, torch.zeros_like(found))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
