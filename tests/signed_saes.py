"""Small signed SAEs with random weights, for the tests of the polarity split and its inverse."""

from collections.abc import Callable
from typing import Any

from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUSAE, BiJumpReLUSAEConfig
from sae_lens_bipolar.architectures.bi_topk import BiTopKSAE, BiTopKSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedSAE,
    SignAwareGatedSAEConfig,
)
from sae_lens_bipolar.architectures.unrolled_abstopk import (
    UnrolledAbsTopKSAE,
    UnrolledAbsTopKSAEConfig,
)
from tests.architectures.family import randomise

D_IN, D_SAE = 6, 20


def _gated(**options: Any) -> Callable[..., SAE[Any]]:
    return lambda **cfg: SignAwareGatedSAE(SignAwareGatedSAEConfig(**options, **cfg))


# name -> an inference SAE from the fields of its configuration
SIGNED: dict[str, Callable[..., SAE[Any]]] = {
    "abstopk": lambda **cfg: AbsTopKSAE(AbsTopKSAEConfig(k=4, **cfg)),
    "abstopk rescaled": lambda **cfg: AbsTopKSAE(
        AbsTopKSAEConfig(k=4, rescale_acts_by_decoder_norm=True, **cfg)
    ),
    "bi_topk": lambda **cfg: BiTopKSAE(BiTopKSAEConfig(k=4, **cfg)),
    "bi_topk rescaled": lambda **cfg: BiTopKSAE(
        BiTopKSAEConfig(k=4, rescale_acts_by_decoder_norm=True, **cfg)
    ),
    "bi_jumprelu": lambda **cfg: BiJumpReLUSAE(BiJumpReLUSAEConfig(**cfg)),
    "sign_aware_gated full": _gated(symmetry="full"),
    "sign_aware_gated gain": _gated(symmetry="gain"),
    "sign_aware_gated none": _gated(symmetry="none"),
    "sign_aware_gated one-sided": _gated(two_sided_gate=False),
    "unrolled_abstopk of one step": lambda **cfg: UnrolledAbsTopKSAE(
        UnrolledAbsTopKSAEConfig(k=4, n_steps=1, **cfg)
    ),
}


def signed_sae(name: str, seed: int = 0, **cfg: Any) -> SAE[Any]:
    """The SAE of that name, all its parameters drawn at random."""
    return randomise(SIGNED[name](**{"d_in": D_IN, "d_sae": D_SAE, **cfg}), seed)
