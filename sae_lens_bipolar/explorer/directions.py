"""What decoder rows say by themselves: neighbours, counterparts in another SAE, output tokens."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.describe import logit_effects
from sae_lens_bipolar.explorer.latents import Firings

_ELEMENTS = 1 << 24  # cosines or logits held at a time: 64 MiB
N_COUNTERPARTS = 2  # latents of the other SAE along a latent's direction, and as many against it


@dataclass(frozen=True, eq=False)
class Ranked:
    """For each row the indices that come first and last and their values; each `[n, k]`."""

    high: torch.Tensor
    high_value: torch.Tensor  # descending
    low: torch.Tensor
    low_value: torch.Tensor  # ascending


@torch.no_grad()
def neighbours(decoder: torch.Tensor, n: int) -> Ranked:
    """Nearest and antipodal latents by the cosine of decoder rows `[d_sae, d_in]`."""
    return _by_cosine(decoder, decoder, n, itself=False)


@torch.no_grad()
def counterparts(decoder: torch.Tensor, other: torch.Tensor) -> Ranked:
    """Latents of another SAE along and against each decoder row."""
    return _by_cosine(decoder, other, N_COUNTERPARTS, itself=True)


def _by_cosine(decoder: torch.Tensor, other: torch.Tensor, n: int, itself: bool) -> Ranked:
    rows, columns = normalize(decoder.float(), dim=1), normalize(other.float(), dim=1)
    n = min(n, len(columns) - (not itself))
    step = max(1, _ELEMENTS // len(columns))
    parts = []
    for start in range(0, len(rows), step):
        cosine = rows[start : start + step] @ columns.T
        own = torch.arange(len(cosine))
        if not itself:
            cosine[own, start + own] = -2.0
        high = cosine.topk(n, dim=1)
        if not itself:
            cosine[own, start + own] = 2.0
        low = cosine.topk(n, dim=1, largest=False)
        parts.append((high.indices, high.values, low.indices, low.values))
    return Ranked(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


@torch.no_grad()
def output_tokens(model: HookedTransformer, decoder: torch.Tensor, n: int) -> Ranked:
    """Tokens that each decoder row promotes most and least, by the direct effect on the logits.

    What the negative side promotes is what the positive side promotes least. Empty where the hook
    has no direct path to the logits.
    """
    step = max(1, _ELEMENTS // model.cfg.d_vocab)
    parts = []
    for start in range(0, len(decoder), step):
        effect = logit_effects(model, decoder[start : start + step])
        k = min(n, effect.shape[1])
        high, low = effect.topk(k, dim=1), effect.topk(k, dim=1, largest=False)
        parts.append((high.indices, high.values, low.indices, low.values))
    return Ranked(*(torch.cat(part) for part in zip(*parts, strict=True)))


class CoFiring:
    """How often a latent and its counterparts in another SAE fire on the same token.

    `joint[i, c, s, t]` counts tokens on which latent `i` fires on side `s` and its counterpart `c`
    on side `t`; `[d_sae, 2 N_COUNTERPARTS, 2, 2]`.
    """

    def __init__(self, ranked: Ranked) -> None:
        self.ranked = ranked
        self.partners = torch.cat([ranked.high, ranked.low], dim=1)
        self.joint = torch.zeros(*self.partners.shape, 2, 2, dtype=torch.int32)

    def add(self, firings: Firings, other: torch.Tensor) -> None:
        """Count a batch, with the other SAE's latents `[batch, position, d_sae]`."""
        n = self.partners.shape[1]
        partner = self.partners[firings.latent]
        value = other[firings.row[:, None], firings.position[:, None], partner]
        side = firings.side[:, None]
        slot = ((firings.latent[:, None] * n + torch.arange(n)) * 2 + side) * 2 + (value < 0)
        chosen = slot[value != 0]
        self.joint.view(-1).index_add_(0, chosen, torch.ones(len(chosen), dtype=torch.int32))
