"""What the explorer should hold, by a plain dense computation; and small explorers to look at."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens.saes.sae import SAE
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.placement import activations, placement
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.evaluation.text_reader import BATCH
from sae_lens_bipolar.runs.sources import Source, find_saes
from tests.steering.saes import make_sae

SEQUENCES, LENGTH = 20, 24


def save(name: str, folder: Path, architecture: str, **more: Any) -> Source:
    """A random SAE of an architecture, saved, as the explorer is given it."""
    sae = make_sae(architecture, **more)
    sae.save_model(folder / name)
    (source,) = find_saes([folder / name])
    return source


def some_text(model: HookedTransformer, sequences: int = SEQUENCES) -> torch.Tensor:
    """Random token ids; the last sequence repeats the first, so that contexts tie."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 60, (sequences, LENGTH), generator=generator)
    tokens[-1] = tokens[0]
    return tokens


@torch.no_grad()
def dense_latents(sae: SAE[Any], model: HookedTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """All latents at once, `[sequences, position, d_sae]`, 0 at attention sinks."""
    place = placement(sae)
    x = activations(model, tokens, place.hook_name)
    norms = x.norm(dim=-1)
    keep = norms <= sink_threshold(x[:BATCH])
    z = sae.encode(x)
    return (z.to_dense() if z.is_sparse else z) * keep.unsqueeze(-1)


def dense_contexts(z: torch.Tensor, side: int, n: int) -> list[tuple[int, int, float]]:
    """(sequence, position, |z|) of a latent's strongest contexts; `z`: `[sequences, position]`."""
    signed = (z if side == 0 else -z).numpy()
    best = [(-row.max(), i, int(row.argmax())) for i, row in enumerate(signed) if row.max() > 0]
    return [(i, position, -value) for value, i, position in sorted(best)[:n]]


def dense_histogram(z: torch.Tensor, width: float, bins: int) -> list[list[int]]:
    """Counts per side in bins of `width`."""
    edges = np.arange(bins + 1) * width
    values = z.numpy().astype(np.float64).ravel()
    sides = (values[values > 0], -values[values < 0])
    return [np.histogram(side, edges)[0].tolist() for side in sides]
