"""The record of a latent: what its integers mean, written and read.

In this order (`static/records.js` reads the same):

    largest     2 float32: largest |z|, positive then negative side
    mean        2 in 1/4095 of the side's largest: mean |z| where that side fires
    histogram   exponent + 1000, then BINS counts per side
    contexts    per side: their number; per context the sequence, the position of the peak, tokens
                before it, tokens in all, |z| at the peak in 1/4095 of the side's largest, 31 bits
                that say which tokens fired; the tokens; for each that fired z (zigzag) in 1/63 of
                its own side's largest
    outputs     number promoted per side, largest |effect| (float32); per side and token the token
                and its effect in 1/127 of that; none of a latent that has not fired
    neighbours  number, 0 of a latent that has not fired; nearest: latent, cosine; antipodal:
                latent, cosine (zigzag, in 1/1000)

Tokens are ranks in the site's vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_lens_bipolar.explorer.config import BINS
from sae_lens_bipolar.explorer.directions import Ranked
from sae_lens_bipolar.explorer.latents import LatentStatistics
from sae_lens_bipolar.explorer.packing import (
    always,
    beside,
    bits_float,
    float_bits,
    pack_rows,
    shares,
    unpack,
    unzigzag,
    zigzag,
)

PEAK_STEPS, WINDOW_STEPS, EFFECT_STEPS, COSINE_STEPS = 4095, 63, 127, 1000
EXPONENT_OFFSET = 1000
_Table = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Described:
    """All that is known of one SAE's latents."""

    statistics: LatentStatistics
    outputs: Ranked
    neighbours: Ranked


def latent_records(
    found: Described, tokens: np.ndarray, ranks: np.ndarray, start: int, stop: int
) -> list[str]:
    """The packed records of latents `start` to `stop`.

    Args:
        found: what is known of them.
        tokens: the corpus, `[sequences, context_size]`.
        ranks: of each token id in the site's vocabulary, `[d_vocab]`.
    """
    own = slice(start, stop)
    statistics = found.statistics
    largest = statistics.largest[:, own].numpy().astype(np.float64)
    count = statistics.count[:, own].numpy()
    mean = statistics.total[:, own].numpy() / np.maximum(count, 1)
    header = always(
        float_bits(largest.T),
        shares(mean.T, largest.T, PEAK_STEPS),
        statistics.exponent[own].numpy() + EXPONENT_OFFSET,
        statistics.histogram[own].numpy(),
    )
    sides = [_contexts(statistics, side, own, largest, tokens, ranks) for side in (0, 1)]
    fires = statistics.fires[own].numpy()
    table = beside(
        header,
        *sides,
        _outputs(found.outputs, own, ranks, fires),
        _neighbours(found.neighbours, own, fires),
    )
    return pack_rows(*table)


def _contexts(
    statistics: LatentStatistics,
    side: int,
    own: slice,
    largest: np.ndarray,
    tokens: np.ndarray,
    ranks: np.ndarray,
) -> _Table:
    peak = statistics.peak[side, own].numpy()  # [latents, contexts]
    sequence, position = np.moveaxis(statistics.place[side, own].numpy().astype(np.int64), -1, 0)
    z = statistics.window[side, own].numpy()  # [latents, contexts, width]
    width, radius = z.shape[-1], statistics.radius
    at = position[..., None] + np.arange(-radius, radius + 1)
    there = (peak > 0)[..., None] & (at >= 0) & (at < tokens.shape[1])
    ids = tokens[sequence[..., None], np.clip(at, 0, tokens.shape[1] - 1)]
    fired = there & (z != 0)
    own_largest = np.where(z > 0, largest[0][:, None, None], largest[1][:, None, None])
    size = np.maximum(shares(np.abs(z), own_largest, WINDOW_STEPS), 1)
    before = there[..., :radius].sum(-1)
    # Bit 0 is the first token there is.
    bits = (fired.astype(np.int64) << np.arange(width)).sum(-1) >> np.where(
        peak > 0, radius - before, 0
    )
    head = np.stack(
        [
            *(sequence, position, before, there.sum(-1)),
            *(shares(peak, largest[side][:, None], PEAK_STEPS), bits),
        ],
        axis=-1,
    )
    values = np.concatenate([head, ranks[ids], zigzag(np.where(z < 0, -size, size))], axis=-1)
    has_head = np.repeat((peak > 0)[..., None], head.shape[-1], axis=-1)
    present = np.concatenate([has_head, there, fired], axis=-1)
    number = always((peak > 0).sum(-1))
    return beside(number, (values, present))


def _outputs(ranked: Ranked, own: slice, ranks: np.ndarray, fires: np.ndarray) -> _Table:
    parts = []
    pairs = ((ranked.high, ranked.high_value), (ranked.low, ranked.low_value))
    n, k = len(ranked.high[own]), ranked.high.shape[1]
    most = np.zeros((n, 1))
    if k:
        most = np.stack([v[own].abs().numpy().max(1) for _, v in pairs]).max(0)[:, None]
    for indices, values in pairs:
        effects = zigzag(shares(values[own].numpy(), most, EFFECT_STEPS))
        parts.append(np.stack([ranks[indices[own].numpy()], effects], axis=-1).reshape(n, -1))
    return beside(always(k * fires, float_bits(most)), _where(fires, *parts))


def _neighbours(ranked: Ranked, own: slice, fires: np.ndarray) -> _Table:
    pairs = ((ranked.high, ranked.high_value), (ranked.low, ranked.low_value))
    n = len(ranked.high[own])
    parts = [
        np.stack(
            [i[own].numpy(), zigzag(shares(v[own].numpy(), 1.0, COSINE_STEPS))], axis=-1
        ).reshape(n, -1)
        for i, v in pairs
    ]
    return beside(always(ranked.high.shape[1] * fires), _where(fires, *parts))


def _where(fires: np.ndarray, *parts: np.ndarray) -> _Table:
    """Columns of the latents that fire."""
    values = np.concatenate(parts, axis=1)
    return values, np.broadcast_to(fires[:, None], values.shape)


def read_record(text: str) -> dict[str, Any]:
    """A latent's record, unpacked: the keys of the table above, per side where there are two."""
    numbers = iter(unpack(text))

    def take(n: int) -> list[int]:
        return [next(numbers) for _ in range(n)]

    largest = [bits_float(one) for one in take(2)]
    mean = [one / PEAK_STEPS * most for one, most in zip(take(2), largest, strict=True)]
    exponent = next(numbers) - EXPONENT_OFFSET
    histogram = [take(BINS), take(BINS)]
    contexts = [
        [_read_context(take, largest, side) for _ in range(next(numbers))] for side in (0, 1)
    ]
    k, most = next(numbers), bits_float(next(numbers))
    outputs = [
        [[next(numbers), unzigzag(next(numbers)) / EFFECT_STEPS * most] for _ in range(k)]
        for _ in (0, 1)
    ]
    k = next(numbers)
    near, opposite = (
        [[next(numbers), unzigzag(next(numbers)) / COSINE_STEPS] for _ in range(k)] for _ in (0, 1)
    )
    return {
        "largest": largest,
        "mean": mean,
        "histogram": {"exponent": exponent, "counts": histogram},
        "contexts": contexts,
        "outputs": outputs,
        "nearest": near,
        "antipodal": opposite,
    }


def _read_context(take: Any, largest: list[float], side: int) -> dict[str, Any]:
    sequence, position, before, n, peak, bits = take(6)
    tokens, z = take(n), [0.0] * n
    for offset in range(n):
        if bits >> offset & 1:
            steps = unzigzag(take(1)[0])
            z[offset] = steps / WINDOW_STEPS * largest[steps < 0]
    return {
        "sequence": sequence,
        "position": position,
        "before": before,
        "peak": peak / PEAK_STEPS * largest[side],
        "tokens": tokens,
        "z": z,
    }
