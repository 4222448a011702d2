"""The search for antipodal pairs: latents of an SAE that point in opposite directions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

_CHUNK_ELEMENTS = 1 << 24  # cosines held at a time: 64 MiB in float32
_ROUNDING = 1e-6  # slack on cosines, so that exact opposites count as such


@dataclass(frozen=True, eq=False)
class AntipodalPairs:
    """`pairs` `[n, 2]` with `i < j`, ordered by `i`, and the cosines of both, `[n]`."""

    pairs: torch.Tensor
    decoder_cosine: torch.Tensor
    encoder_cosine: torch.Tensor


def antipodal_pairs(
    encoder: torch.Tensor, decoder: torch.Tensor, encoder_threshold: float, decoder_threshold: float
) -> AntipodalPairs:
    """Match latents with nearly opposite directions, each at most once.

    Candidates have decoder cosine `<= -decoder_threshold` and encoder cosine `<=
    -encoder_threshold`; the matching is greedy on the sum of the two cosines, most opposite first
    (at least half the weight of the best matching), ties to the smallest indices. The cosines are
    computed `2^24` at a time, so `[d_sae, d_sae]` is never held.

    Args:
        encoder: encoder directions, `[d_sae, d_in]`.
        decoder: decoder directions, `[d_sae, d_in]`.
        encoder_threshold: in (0, 1].
        decoder_threshold: in (0, 1].
    """
    chunks = list(
        _candidates(
            normalize(encoder, dim=1),
            normalize(decoder, dim=1),
            encoder_threshold,
            decoder_threshold,
        )
    )
    pairs, decoder_cosine, encoder_cosine = (
        torch.cat(part).cpu() for part in zip(*chunks, strict=True)
    )
    # Rounded, so that exact opposites tie whatever the order their dot products were summed in.
    score = (decoder_cosine + encoder_cosine).double().div(_ROUNDING).round()
    used: set[int] = set()
    taken = []
    indices = pairs.tolist()
    for candidate in score.argsort(stable=True).tolist():
        i, j = indices[candidate]
        if i not in used and j not in used:
            used.update((i, j))
            taken.append(candidate)
    chosen = torch.tensor(sorted(taken), dtype=torch.long)  # candidates come ordered by (i, j)
    return AntipodalPairs(pairs[chosen], decoder_cosine[chosen], encoder_cosine[chosen])


def _candidates(
    encoder: torch.Tensor, decoder: torch.Tensor, encoder_threshold: float, decoder_threshold: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pairs `[n, 2]` ordered by `(i, j)`, `i < j`, with both cosines, block of rows by block."""
    d_sae = len(decoder)
    rows = max(1, _CHUNK_ELEMENTS // d_sae)
    for start in range(0, d_sae, rows):
        cosine = decoder[start : start + rows] @ decoder[start:].T
        close = (cosine <= _ROUNDING - decoder_threshold).triu(diagonal=1)
        i, j = close.nonzero(as_tuple=True)
        # As many directions gathered at a time as cosines held.
        step = max(1, _CHUNK_ELEMENTS // decoder.shape[1])
        encoder_cosine = torch.cat(
            [
                (encoder[start + i[at : at + step]] * encoder[start + j[at : at + step]]).sum(-1)
                for at in range(0, max(len(i), 1), step)
            ]
        )
        keep = encoder_cosine <= _ROUNDING - encoder_threshold
        i, j = i[keep], j[keep]
        yield torch.stack([start + i, start + j], dim=1), cosine[i, j], encoder_cosine[keep]
