"""Two SAEs on the same tokens: how often a latent fires together with its counterparts."""

from dataclasses import dataclass

import torch

from sae_lens_bipolar.explorer.directions import Ranked
from sae_lens_bipolar.explorer.latents import Firings, State

_ELEMENTS = 1 << 26  # latents' signs held at a time, one byte each: 64 MiB


class Sample:
    """The firings of one SAE on the first tokens of the text.

    Memory is bounded by the number of tokens: of an SAE with more than 64 latents per token the 64
    strongest are kept.
    """

    def __init__(self, d_sae: int, tokens: int) -> None:
        self.d_sae, self.tokens = d_sae, tokens
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, z: torch.Tensor, firings: Firings, first_row: int) -> None:
        """Keep a batch, as far as it lies within the first tokens.

        Args:
            z: `[batch, position, d_sae]`, 0 at what does not count.
            firings: those of `z`.
            first_row: sequence of the corpus that the batch begins with.
        """
        start, length = first_row * z.shape[1], z.shape[1]
        if start >= self.tokens:
            return
        kept = firings.bounded(z, len(z) * length)
        token = start + kept.row * length + kept.position
        inside = token < self.tokens
        code = kept.latent * 2 + kept.side
        self._parts.append((token[inside].int(), code[inside].int()))

    @property
    def state(self) -> State:
        """What is kept, ordered by token: `token`, and `code`, latent times 2 plus side."""
        empty = torch.zeros(0, dtype=torch.int32)
        columns = zip(*self._parts, strict=True) if self._parts else ([empty], [empty])
        token, code = (torch.cat(list(column)) for column in columns)
        return {"token": token, "code": code}

    def restore(self, state: State) -> None:
        """Go on from a saved state."""
        self._parts = [(state["token"], state["code"])]


@dataclass(frozen=True, eq=False)
class Pair:
    """Counterparts of an SAE's latents in another one; `[d_sae, 1]` along, `[d_sae, 1]` against.

    `together[i, c, s]`: of the tokens on which latent `i` fires on side `s` or its counterpart `c`
    on the side that points the same way, the share on which both do; along first, `[d_sae, 2, 2]`.
    """

    ranked: Ranked
    together: torch.Tensor


def pair(own: Sample, other: Sample, ranked: Ranked) -> Pair:
    """What fires together; `ranked`: the counterparts in `other` of `own`'s latents."""
    partners = torch.cat([ranked.high, ranked.low], dim=1)
    turned = torch.cat([ranked.high_value, ranked.low_value], dim=1) < 0
    joint = torch.zeros(*partners.shape, 2, dtype=torch.int64)
    mine, theirs = own.state, other.state
    step = max(1, _ELEMENTS // other.d_sae)
    tokens = int(mine["token"][-1]) + 1 if len(mine["token"]) else 0
    for start in range(0, tokens, step):
        token, latent, side = _within(mine, start, step)
        their_token, their_latent, their_side = _within(theirs, start, step)
        fired = torch.zeros(step, other.d_sae, dtype=torch.int8)
        fired[their_token, their_latent] = (1 - 2 * their_side).to(torch.int8)
        sign = fired[token[:, None], partners[latent]]
        wanted = 1 - 2 * (side[:, None] ^ turned[latent].long())
        slot = (latent[:, None] * partners.shape[1] + torch.arange(partners.shape[1])) * 2
        chosen = (slot + side[:, None])[sign == wanted]
        joint.view(-1).index_add_(0, chosen, torch.ones_like(chosen))
    counts = [
        torch.bincount(state["code"], minlength=2 * one.d_sae).view(-1, 2)
        for one, state in ((own, mine), (other, theirs))
    ]
    sides = torch.arange(2) ^ turned[..., None].long()
    either = counts[0][:, None] + counts[1][partners[..., None], sides] - joint
    return Pair(ranked, joint / either.clamp(min=1))


def _within(state: State, start: int, step: int) -> tuple[torch.Tensor, ...]:
    """Token less `start`, latent and side of the firings on `step` tokens."""
    first, last = torch.searchsorted(state["token"], torch.tensor([start, start + step]).int())
    token, code = (state[key][first:last].long() for key in ("token", "code"))
    return token - start, code // 2, code % 2
