"""The search for antipodal pairs: latents of an SAE that point in opposite directions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from sae_lens_bipolar.errors import ConfigError

_CHUNK_ELEMENTS = 1 << 24  # cosines held at a time: 64 MiB in float32
_ROUNDING = 1e-6  # slack on cosines, so that exact opposites count as such


@dataclass(frozen=True, eq=False)
class AntipodalPairs:
    """`pairs` `[n, 2]` with `i < j`, ordered by `i`, and the cosines of both, `[n]`."""

    pairs: torch.Tensor
    decoder_cosine: torch.Tensor
    encoder_cosine: torch.Tensor


def antipodal_pairs(
    encoder: torch.Tensor,
    decoder: torch.Tensor,
    cosine_threshold: float = 0.9,
    encoder_cosine_threshold: float | None = None,
) -> AntipodalPairs:
    """Match latents with nearly opposite directions, each at most once.

    Candidates have decoder and encoder cosine `<= -threshold`. The matching is greedy on the sum
    of the two cosines, most opposite first (at least half the weight of the best matching), ties
    to the smallest indices. Cosines are computed `2^24` at a time: `[d_sae, d_sae]` is never held.

    Args:
        encoder: encoder directions, `[d_sae, d_in]`.
        decoder: decoder directions, `[d_sae, d_in]`.
        cosine_threshold: for decoder directions, in (0, 1].
        encoder_cosine_threshold: for encoder directions, in (0, 1]; None: the same.

    Raises:
        ConfigError: if a threshold is out of range.
    """
    if encoder_cosine_threshold is None:
        encoder_cosine_threshold = cosine_threshold
    thresholds = (cosine_threshold, encoder_cosine_threshold)
    for name, value in zip(
        ("cosine_threshold", "encoder_cosine_threshold"), thresholds, strict=True
    ):
        if not 0 < value <= 1:
            raise ConfigError(
                f"{name} is {value}; give t in (0, 1]: pairs have cosines of -t or below"
            )
    chunks = list(_candidates(normalize(encoder, dim=1), normalize(decoder, dim=1), *thresholds))
    pairs, decoder_cosine, encoder_cosine = (
        torch.cat(part).cpu() for part in zip(*chunks, strict=True)
    )
    # Rounded, so that exact opposites tie in whatever order their dot products were summed.
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
    encoder: torch.Tensor, decoder: torch.Tensor, decoder_threshold: float, encoder_threshold: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pairs `[n, 2]` ordered by `(i, j)`, `i < j`, with both cosines, block of rows by block."""
    d_sae = len(decoder)
    rows = max(1, _CHUNK_ELEMENTS // d_sae)
    for start in range(0, d_sae, rows):
        cosine = decoder[start : start + rows] @ decoder[start:].T
        i, j = (cosine <= _ROUNDING - decoder_threshold).nonzero(as_tuple=True)
        i, j = i[i < j], j[i < j]
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
