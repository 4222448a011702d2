"""Arithmetic on active latents only: encode, decode, select, and the optimiser that fits it.

Knows no SAE and no SAELens.
"""

from sae_lens_bipolar.sparse.choice import (
    CROSSOVER,
    Mode,
    arithmetic,
    is_always_dense,
    mode,
    prefer_sparse,
    set_mode,
)
from sae_lens_bipolar.sparse.measured import Arithmetic
from sae_lens_bipolar.sparse.ops import (
    decode,
    encode_threshold,
    encode_top_k,
    encode_top_k_twice,
    row_norms,
    search,
)

__all__ = [
    "CROSSOVER",
    "Arithmetic",
    "Mode",
    "arithmetic",
    "decode",
    "encode_threshold",
    "encode_top_k",
    "encode_top_k_twice",
    "is_always_dense",
    "mode",
    "prefer_sparse",
    "row_norms",
    "search",
    "set_mode",
]
