"""What SCR and TPP test their probes on: each text's mean activation after latents were ablated.

SAEBench (sae_bench 0.6.0, evals/scr_and_tpp/main.py:197) encodes every text once and decodes it
twice for each class and n. A decoder D is affine, so with z the latents of a token and r those that
are ablated,

    sum_t [x_t + D(z_t - r_t) - D(z_t)] = sum_t x_t - [D(sum_t r_t) - D(0)]

and the sums over tokens are taken once per text. The numbers are SAEBench's but for rounding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

Ablate = Callable[[torch.Tensor, Any, torch.Tensor, int], torch.Tensor]


class SilentAtPadding:
    """An SAE whose latents are 0 where the input is 0: SAEBench zeroes masked tokens."""

    def __init__(self, sae: Any):
        self.sae = sae

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.sae.encode(x) * (x != 0).any(dim=-1, keepdim=True)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        return self.sae.decode(feature_acts)


class Sums(NamedTuple):
    """Over a text's tokens."""

    x: torch.Tensor  # activations, `[texts, d_in]`
    latents: torch.Tensor  # `[texts, d_sae]`
    n_tokens: torch.Tensor  # that are not padding, `[texts, 1]`


def ablated_means(ablate: Ablate, mask_padding: bool) -> Ablate:
    """SAEBench's `ablated_precomputed_activations`, which encodes each set of texts once.

    Args:
        ablate: SAEBench's own, for an SAE whose decoder is not affine.
        mask_padding: whether latents at padding are 0.

    Returns:
        A function of activations `[texts, tokens, d_in]`, 0 at padding, the SAE, a mask `[d_sae]`
        of latents to ablate, and how many texts are encoded at once; it returns `[texts, d_in]`. It
        is for one SAE, and keeps the sums of activations that live.
    """
    kept: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def means(acts: torch.Tensor, sae: Any, to_ablate: torch.Tensor, batch: int) -> torch.Tensor:
        encoder = SilentAtPadding(sae) if mask_padding else sae
        if not has_affine_decoder(sae):
            return ablate(acts, encoder, to_ablate, batch)
        if acts not in kept:
            kept[acts] = _sums(acts, encoder, batch)
        sums: Sums = kept[acts]
        ablated = torch.zeros_like(sums.latents)
        ablated[:, to_ablate] = sums.latents[:, to_ablate]
        removed = sae.decode(ablated) - sae.decode(torch.zeros_like(ablated[:1]))
        return (sums.x - removed) / sums.n_tokens

    return means


def has_affine_decoder(sae: Any) -> bool:
    """Whether `decode` is one affine map, so that it knows nothing of the input's norm."""
    return sae.cfg.normalize_activations in ("none", "expected_average_only_in")


@torch.no_grad()
def _sums(acts: torch.Tensor, encoder: Any, batch: int) -> Sums:
    # SAEBench's own count: a token whose activations add up to 0 is none.
    n_tokens = (acts.sum(dim=-1) != 0).sum(dim=-1, keepdim=True).to(acts.dtype)
    latents = [encoder.encode(part).sum(dim=1) for part in acts.split(batch)]
    return Sums(acts.sum(dim=1), torch.cat(latents), n_tokens)
