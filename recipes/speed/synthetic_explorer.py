"""A folder of an explorer without a model: random latents that fire on both sides, random text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sae_lens_bipolar.explorer import site
from sae_lens_bipolar.explorer.config import BINS, SHARD, TOKEN_SHARD, ExplorerConfig
from sae_lens_bipolar.explorer.directions import Ranked
from sae_lens_bipolar.explorer.latents import LatentStatistics
from sae_lens_bipolar.explorer.records import Described
from sae_lens_bipolar.explorer.vocabulary import Vocabulary
from sae_lens_bipolar.explorer.words import TokenIndex

NAME = "synthetic"


@dataclass(frozen=True)
class Sizes:
    """Of a synthetic explorer."""

    latents: int = 100_000
    vocabulary: int = 30_000
    sequences: int = 8_000  # of 128 tokens: a million
    fires_nearby: float = 0.15  # share of the tokens of a window on which the latent fires too
    seed: int = 0


def write_synthetic(folder: Path, sizes: Sizes) -> None:
    """Write the folder, with the sizes of contexts that `ExplorerConfig` has by default."""
    draw = np.random.default_rng(sizes.seed)
    tokens = np.minimum(draw.zipf(1.3, (sizes.sequences, 128)), sizes.vocabulary) - 1
    config = ExplorerConfig()
    outputs = _ranked(draw, sizes.latents, sizes.vocabulary, config.output_tokens)
    vocabulary = Vocabulary.of(
        torch.from_numpy(tokens), [outputs.high, outputs.low], sizes.vocabulary
    )
    found = Described(
        _statistics(draw, sizes, config),
        outputs,
        _ranked(draw, sizes.latents, sizes.latents, config.neighbours),
    )
    site.write_sae(folder, NAME, found, tokens, vocabulary)
    index = _index(draw, sizes, config, vocabulary)
    site.write_words(folder, NAME, index, vocabulary)
    site.put(folder, f"{NAME}/dials", [])
    texts = [f" word{rank}" for rank in range(len(vocabulary.ids))]
    facts = {
        "title": "random latents",
        "model": "none",
        "hook_name": "blocks.0.hook_resid_post",
        "text": "random words",
        "sequences": sizes.sequences,
        "context_size": 128,
        "shard": SHARD,
        "token_shard": TOKEN_SHARD,
        "neutral": [],
        "pairs": [],
        "saes": [
            {
                "name": NAME,
                "architecture": "abstopk",
                "title": "random",
                "signed": True,
                "d_sae": sizes.latents,
                "digest": "0" * 64,
                "n_tokens": tokens.size,
            }
        ],
    }
    site.write_vocabulary(folder, texts, vocabulary, facts)
    site.write_page(folder, "Random latents")


def _statistics(
    draw: np.random.Generator, sizes: Sizes, config: ExplorerConfig
) -> LatentStatistics:
    n, contexts = sizes.latents, config.contexts
    found = LatentStatistics(n, contexts, config.radius)
    peak = -np.sort(-draw.gamma(4.0, 2.0, (2, n, contexts)).astype(np.float32), axis=-1)
    window = draw.normal(0, 2, found.window.shape).astype(np.float32)
    window *= draw.random(window.shape) < sizes.fires_nearby
    window[..., config.radius] = peak
    window[1] *= -1
    place = np.stack(
        [draw.integers(0, sizes.sequences, peak.shape), draw.integers(0, 128, peak.shape)], axis=-1
    )
    largest = torch.from_numpy(np.maximum(peak[..., 0], np.abs(window).max((2, 3))))
    count = draw.integers(20, 20_000, (2, n))
    found.state.update(
        count=torch.from_numpy(count),
        total=torch.from_numpy(count * 1.5),
        largest=largest,
        exponent=(torch.frexp(largest.amax(0)).exponent - (BINS.bit_length() - 1)).int(),
        histogram=torch.from_numpy(draw.integers(0, 900, (n, 2, BINS), dtype=np.int32)),
        peak=torch.from_numpy(peak),
        place=torch.from_numpy(place.astype(np.int32)),
        window=torch.from_numpy(window),
    )
    return found


def _ranked(draw: np.random.Generator, rows: int, columns: int, k: int) -> Ranked:
    high, low = (torch.from_numpy(draw.integers(0, columns, (rows, k))) for _ in range(2))
    values = torch.from_numpy(-np.sort(-draw.random((rows, k)), axis=1))
    return Ranked(high, values, low, -values)


def _index(
    draw: np.random.Generator, sizes: Sizes, config: ExplorerConfig, vocabulary: Vocabulary
) -> TokenIndex:
    ids = vocabulary.ids[vocabulary.counts > 0]
    counted = np.zeros(sizes.vocabulary, dtype=np.int32)
    counted[ids] = np.minimum(vocabulary.counts[vocabulary.counts > 0], config.occurrences)
    token = np.repeat(np.sort(ids), config.per_token)
    strength = -np.sort(-draw.random((len(ids), config.per_token)), axis=1).ravel()
    columns = (
        *(counted, token, draw.integers(0, sizes.latents, len(token))),
        *(draw.integers(0, 2, len(token)), strength, np.maximum(1, counted[token] // 2)),
    )
    return TokenIndex(*map(torch.from_numpy, columns))
