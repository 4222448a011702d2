"""What a latent costs in parameters, and from which rate of anticorrelated pairs a sign pays.

`F` directions of which a share `q` come as antipodal pairs take `F` latents of a Gated SAE and
`F (1 - q / 2)` signed ones. With `c` parameters per latent the signed SAE is the smaller one from

    q* = 2 (1 - c_gated / c_signed)

on: 0 where the sign costs nothing, as when both sides share threshold, gain and bias.
"""

from collections.abc import Sequence
from typing import Any

from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedSAE,
    SignAwareGatedSAEConfig,
)

GATED = "Gated"
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    GATED: (GatedSAE, GatedSAEConfig, {}),
    "SA-GSAE, all tied": (SignAwareGatedSAE, SignAwareGatedSAEConfig, {"symmetry": "full"}),
    "SA-GSAE, gain tied": (SignAwareGatedSAE, SignAwareGatedSAEConfig, {"symmetry": "gain"}),
    "SA-GSAE, untied": (SignAwareGatedSAE, SignAwareGatedSAEConfig, {"symmetry": "none"}),
    "TopK": (TopKSAE, TopKSAEConfig, {"k": 1}),
    "AbsTopK": (AbsTopKSAE, AbsTopKSAEConfig, {"k": 1}),
}


def n_parameters(kind: str, d_in: int, d_sae: int) -> int:
    """Parameters of the SAE as it is saved for inference, counted on the class itself."""
    sae_class, config_class, fields = KINDS[kind]
    sae = sae_class(config_class(d_in=d_in, d_sae=d_sae, device="meta", **fields))
    return sum(parameter.numel() for parameter in sae.parameters())


def latent_cost(kind: str, d_in: int) -> int:
    """Parameters that one more latent adds."""
    return n_parameters(kind, d_in, 2) - n_parameters(kind, d_in, 1)


def break_even(kind: str, d_in: int) -> float:
    """Share of directions in antipodal pairs from which `kind` is smaller than a Gated SAE."""
    return 2 * (1 - latent_cost(GATED, d_in) / latent_cost(kind, d_in))


def table(d_ins: Sequence[int], widths: Sequence[int]) -> list[dict[str, Any]]:
    """One row per kind, `d_in` and `d_sae`; `half_width` is what half the latents take."""
    return [
        {
            "kind": kind,
            "d_in": d_in,
            "d_sae": d_sae,
            "parameters": n_parameters(kind, d_in, d_sae),
            "half_width": n_parameters(kind, d_in, d_sae // 2),
            "parameters_per_latent": latent_cost(kind, d_in),
            "break_even": break_even(kind, d_in) if kind.startswith("SA-GSAE") else None,
        }
        for d_in in d_ins
        for d_sae in widths
        for kind in KINDS
    ]
