"""Arithmetic on active latents only: encode, decode, select, and the optimiser that fits it.

Knows no SAE and no SAELens.
"""

from sae_lens_bipolar.sparse.ops import (
    CROSSOVER,
    Mode,
    decode,
    encode_threshold,
    encode_top_k,
    encode_top_k_twice,
    mode,
    prefer_sparse,
    row_norms,
    set_mode,
)

__all__ = [
    "CROSSOVER",
    "Mode",
    "decode",
    "encode_threshold",
    "encode_top_k",
    "encode_top_k_twice",
    "mode",
    "prefer_sparse",
    "row_norms",
    "set_mode",
]
