"""What decoder rows say by themselves: neighbours, counterparts in another SAE, output tokens.

Latents that have not fired on the text are left out: nothing is known of what they stand for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.describe import logit_effects

_ELEMENTS = 1 << 24  # cosines or logits held at a time: 64 MiB
_GROUP = 64  # columns whose extreme is taken at once


@dataclass(frozen=True, eq=False)
class Ranked:
    """For each row the indices that come first and last and their values; each `[n, k]`."""

    high: torch.Tensor
    high_value: torch.Tensor  # descending
    low: torch.Tensor
    low_value: torch.Tensor  # ascending

    def among(self, chosen: torch.Tensor) -> "Ranked":
        """The same with indices of a whole, of which a mask had chosen some."""
        index = chosen.nonzero().squeeze(1)
        return Ranked(index[self.high], self.high_value, index[self.low], self.low_value)


@torch.no_grad()
def neighbours(decoder: torch.Tensor, n: int, fires: torch.Tensor) -> Ranked:
    """Nearest and antipodal latents by the cosine of decoder rows `[d_sae, d_in]`.

    Only of latents that `fires`, `[d_sae]`, and among them; the rows of the others are 0.
    """
    rows = normalize(decoder[fires.to(decoder.device)].float(), dim=1)
    n = max(0, min(n, len(rows) - 1))
    parts = []
    for start, cosine in _blocks(rows, rows):
        own = torch.arange(len(cosine))
        cosine[own, start + own] = -2.0
        high = extremes(cosine, n)
        cosine[own, start + own] = 2.0
        parts.append((*high, *extremes(cosine, n, largest=False)))
    return _spread(Ranked(*_whole(parts, n)).among(fires), fires)


@torch.no_grad()
def counterparts(
    decoder: torch.Tensor, other: torch.Tensor, fires: torch.Tensor, other_fires: torch.Tensor
) -> tuple[Ranked, Ranked]:
    """The latent of another SAE most along each decoder row and the one most against it.

    And the same as seen from the other SAE. Only of latents that fire, and among them; the rows of
    the others are 0.
    """
    rows, columns = (
        normalize(one[live.to(one.device)].float(), dim=1)
        for one, live in ((decoder, fires), (other, other_fires))
    )
    k = min(1, len(rows), len(columns))
    there = []
    back: dict[bool, list[tuple[torch.Tensor, torch.Tensor]]] = {True: [], False: []}
    for start, cosine in _blocks(rows, columns):
        there.append((*extremes(cosine, k), *extremes(cosine, k, largest=False)))
        for largest, found in back.items():
            index, value = extremes(cosine.T, k, largest)
            found.append((index + start, value))
    seen = Ranked(*_whole(there, k))
    seen_back = Ranked(*_best(back[True], k, True), *_best(back[False], k, False))
    return (
        _spread(seen.among(other_fires), fires),
        _spread(seen_back.among(fires), other_fires),
    )


def extremes(
    values: torch.Tensor, k: int, largest: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and values of the `k` largest or least of each row `[rows, n]`, the first one first.

    They lie in the `k` groups of columns whose own extreme is the largest: a pass for the groups'
    extremes costs much less than one that orders.
    """
    whole = values.shape[1] // _GROUP
    if whole <= 2 * k:
        found = values.topk(k, dim=1, largest=largest)
        return found.indices, found.values
    grouped = values[:, : whole * _GROUP].unflatten(1, (whole, _GROUP))
    best = grouped.amax(2) if largest else grouped.amin(2)
    groups = best.topk(k, dim=1, largest=largest, sorted=False).indices
    columns = (groups[..., None] * _GROUP + torch.arange(_GROUP, device=values.device)).flatten(1)
    rest = torch.arange(whole * _GROUP, values.shape[1], device=values.device)
    columns = torch.cat([columns, rest.expand(len(values), -1)], dim=1)
    found = values.gather(1, columns).topk(k, dim=1, largest=largest)
    return columns.gather(1, found.indices), found.values


def _blocks(rows: torch.Tensor, columns: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The products of some rows with all columns, and the first of these rows."""
    step = max(1, _ELEMENTS // max(1, len(columns)))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step] @ columns.T


def _whole(parts: list[tuple[torch.Tensor, ...]], k: int) -> tuple[torch.Tensor, ...]:
    """The parts one below the other; `[0, k]` of each where there are none."""
    if not parts:
        return tuple(torch.zeros(0, k, dtype=kind) for kind in (torch.int64, torch.float32) * 2)
    return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))


def _best(
    found: list[tuple[torch.Tensor, torch.Tensor]], k: int, largest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` extremes of each row, of those that blocks of columns have."""
    if not found:
        return torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k)
    index, value = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
    top = value.topk(k, dim=1, largest=largest)
    return index.gather(1, top.indices).cpu(), top.values.cpu()


def _spread(ranked: Ranked, fires: torch.Tensor) -> Ranked:
    """Rows of the latents that fire, among zeros for the others."""
    parts = (ranked.high, ranked.high_value, ranked.low, ranked.low_value)
    whole = [part.new_zeros(len(fires), part.shape[1]) for part in parts]
    for every, part in zip(whole, parts, strict=True):
        every[fires] = part
    return Ranked(*whole)


@torch.no_grad()
def output_tokens(
    model: HookedTransformer, decoder: torch.Tensor, n: int, fires: torch.Tensor
) -> Ranked:
    """Tokens that each decoder row promotes most and least, by the direct effect on the logits.

    What the negative side promotes is what the positive side promotes least. Only of latents that
    `fires`, `[d_sae]`; the rows of the others are 0. Empty where the hook has no direct path to
    the logits.
    """
    live = decoder[fires.to(decoder.device)]
    step = max(1, _ELEMENTS // model.cfg.d_vocab)
    parts = []
    for start in range(0, len(live), step):
        effect = logit_effects(model, live[start : start + step])
        k = min(n, effect.shape[1])
        parts.append((*extremes(effect, k), *extremes(effect, k, largest=False)))
    return _spread(Ranked(*_whole(parts, 0)), fires)
