"""Ranking latents against chance: the best of thousands of latents always looks good.

The score of a latent is a cosine `s_i = w . x_i / (|w| |x_i|)` of its values `x_i` over rows
(texts, pairs, tokens) and weights `w` that say which rows belong to the concept. Chance is what the
best latent reaches when the weights are drawn anew, so `p_i` accounts for having looked at all:

    p_i = (1 + #{draws: max_j |s_j(draw)| >= |s_i|}) / (1 + draws)

(Westfall and Young 1993). On noise, p <= alpha for some latent in a share alpha of searches; in
fewer where draws tie, as they do for latents that fire on a few rows only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sae_lens_bipolar.errors import require_number

_COLUMNS = 4096  # latents scored at a time, so that temporaries stay small
_ROUNDING = 1e-5  # a draw that repeats the true weights must count, whatever the order of sums


@dataclass(frozen=True)
class FoundLatent:
    """One latent of a ranking."""

    latent: int
    sign: int  # 1 or -1: the side to turn it to, to go towards the concept
    score: float  # cosine in [-1, 1]; its sign is `sign`
    p: float  # corrected for the number of latents
    positive: float | None = None  # mean z where the concept is
    negative: float | None = None  # mean z where it is not


@dataclass(frozen=True)
class Ranking:
    """Latents by the size of their score, and whether chance explains the best of them."""

    latents: tuple[FoundLatent, ...]
    chance: float  # |score| that the best latent exceeds by chance in a share alpha of searches
    alpha: float
    n_draws: int
    n_searched: int  # latents searched
    drawn: str  # what was drawn at random

    @property
    def found(self) -> tuple[FoundLatent, ...]:
        """The latents that chance does not explain, `p <= alpha`."""
        return tuple(one for one in self.latents if one.p <= self.alpha)

    @property
    def verdict(self) -> str:
        """A sentence: how many latents were found, or that nothing was."""
        best = max((abs(one.score) for one in self.latents), default=0.0)
        measured = (
            f"the best of {self.n_searched} latents scores {best:.3f}; by chance it exceeds "
            f"{self.chance:.3f} in {self.alpha:.0%} of {self.n_draws} {self.drawn}"
        )
        if not self.found:
            return f"nothing found: {measured}"
        more = " or more" if len(self.found) == len(self.latents) < self.n_searched else ""
        return f"found {len(self.found)}{more}: {measured}"

    def table(self) -> str:
        """The ranking as plain text, its verdict last."""
        lines = [f"{'latent':>8} {'sign':>4} {'score':>7} {'p':>7} {'mean +':>9} {'mean -':>9}"]
        for one in self.latents:
            line = (
                f"{one.latent:>8} {'+' if one.sign > 0 else '-':>4} {one.score:>7.3f} {one.p:>7.3f}"
            )
            means = ["" if m is None else f"{m:.3f}" for m in (one.positive, one.negative)]
            lines.append(f"{line} {means[0]:>9} {means[1]:>9}".rstrip())
        return "\n".join([*lines, self.verdict])


@torch.no_grad()
def rank(
    x: torch.Tensor,
    weights: torch.Tensor,
    draw: Callable[[int, torch.Generator], torch.Tensor],
    drawn: str,
    *,
    means: tuple[torch.Tensor, torch.Tensor] | None = None,
    n: int = 20,
    n_draws: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
) -> Ranking:
    """Rank the columns of `x` by their cosine with `weights`.

    Args:
        x: `[rows, d_sae]`; a column of zeros scores 0.
        weights: `[rows]`.
        draw: from a number and a generator, that many weights as chance gives them,
            `[draws, rows]`.
        drawn: what these are, in the plural, for the verdict.
        means: mean z `[d_sae]` where the concept is and where it is not, for the table.
        n: latents kept.
        n_draws: random weights; alpha * (n_draws + 1) should be an integer.
        alpha: share of searches of noise that may find something.
        seed: of the draws.

    Raises:
        ConfigError: if a number is not allowed.
    """
    require_number(n, "n", 1)
    require_number(alpha, "alpha", 0, 1, exclusive=True)
    require_number(n_draws, "n_draws", 1 / alpha - 1 - 1e-9)
    all_weights = torch.cat([weights[None], draw(n_draws, torch.Generator().manual_seed(seed))])
    all_weights = all_weights.to(x.device, x.dtype)
    all_weights = all_weights / all_weights.norm(dim=1, keepdim=True)
    best = x.new_zeros(n_draws)
    own = []
    for start in range(0, x.shape[1], _COLUMNS):
        columns = x[:, start : start + _COLUMNS]
        scored = (all_weights @ columns) / columns.norm(dim=0).clamp(min=1e-12)
        own.append(scored[0])
        best = torch.maximum(best, scored[1:].abs().amax(1))
    scores, best = torch.cat(own).cpu(), best.cpu()
    order = scores.abs().argsort(descending=True, stable=True)[:n].tolist()
    kept = int(alpha * (n_draws + 1) + 1e-9)  # this many draws may reach a latent that is found
    return Ranking(
        latents=tuple(_row(i, float(scores[i]), best, means) for i in order),
        chance=float(best.sort(descending=True).values[max(kept - 1, 0)]),
        alpha=alpha,
        n_draws=n_draws,
        n_searched=x.shape[1],
        drawn=drawn,
    )


def _row(
    latent: int,
    score: float,
    best: torch.Tensor,
    means: tuple[torch.Tensor, torch.Tensor] | None,
) -> FoundLatent:
    reached = int((best >= abs(score) * (1 - _ROUNDING)).sum())
    return FoundLatent(
        latent=latent,
        sign=1 if score >= 0 else -1,
        score=score,
        p=(1 + reached) / (1 + len(best)),
        positive=None if means is None else float(means[0][latent]),
        negative=None if means is None else float(means[1][latent]),
    )
