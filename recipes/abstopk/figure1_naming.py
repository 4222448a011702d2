"""Nameable opposition: whether the contexts of a latent's two sides hold antonyms, beyond chance.

For latents that fire on both sides, the words near their strongest positive firings and near their
strongest negative ones. Chance: the negative sides permuted among the latents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

_NEAR = 3  # tokens before a firing that belong to its context; the token itself is the last


def contexts_hold(
    z: torch.Tensor, tokens: torch.Tensor, word_ids: torch.Tensor, latent: int, side: int, top: int
) -> torch.Tensor:
    """Which words stand in the contexts of the strongest firings on a side, bool `[words]`.

    Args:
        z: `[tokens, d_sae]`, in the order of the text.
        tokens: token ids, `[tokens]`.
        word_ids: token id of each word.
        side: 1 or -1.
        top: firings that are looked at; fewer if the side fires on fewer tokens.
    """
    values = side * z[:, latent]
    strongest = values.topk(min(top, int((values > 0).sum()))).indices
    near = (strongest[:, None] - torch.arange(_NEAR + 1)).clamp_min(0)
    return torch.isin(word_ids, tokens[near])


def opposition(
    positive: torch.Tensor, negative: torch.Tensor, pairs: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Whether the sides of latent i and j hold two antonyms, bool `[latents, latents]`.

    Args:
        positive, negative: `[latents, words]`.
        pairs: indices of two words each.
    """
    a, b = (torch.tensor(side) for side in zip(*pairs, strict=True))
    plus, minus = positive.float(), negative.float()
    return (plus[:, a] @ minus[:, b].T + plus[:, b] @ minus[:, a].T) > 0


def against_chance(hits: torch.Tensor, draws: int, seed: int) -> dict[str, Any]:
    """Share of latents whose own sides hold antonyms, and the same after permutations."""
    generator = np.random.default_rng(seed)
    table = hits.numpy()
    n = len(table)
    own = float(np.diag(table).mean())
    drawn = np.array([table[np.arange(n), generator.permutation(n)].mean() for _ in range(draws)])
    return {
        "latents": n,
        "share": own,
        "chance": float(drawn.mean()),
        "difference": own - float(drawn.mean()),
        "p": (1 + int((drawn >= own - 1e-12).sum())) / (1 + draws),
        "own": np.diag(table).astype(int).tolist(),
        # Of each latent, how often a negative side drawn at random fits.
        "expected": (table.mean(1)).tolist(),
    }
