"""The two protocols: an SAE as it is and its non-negative split, both with unit decoder rows."""

import copy
from typing import Any

import torch
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.polarity.splitting import is_signed, split
from sae_lens_bipolar.saebench.host.views import LatentView


def benchmarked(sae: SAE[Any], protocol: str) -> SAE[Any] | LatentView:
    """What SAEBench is given for `sae` on a protocol; `sae` itself stays as it is.

    "signed" is the SAE, "split" its polarity split (`sae_lens_bipolar.polarity.split`). SAEBench
    normalises the decoders of SAEs that it loads itself, but not of objects that it is given.
    Absorption, the selection in sparse probing and unlearning's multiplier depend on the scale of
    latents, so both come with unit decoder rows and compute the same function as the SAE. SAELens's
    `fold_W_dec_norm` does that where it can. Where it refuses, because folding would change which
    latents a top-k keeps, or where an SAE has no split in stock SAELens, a `LatentView` does it.
    """
    folded = unit_norm(sae)
    if protocol == "signed" or not is_signed(sae):
        return folded
    if isinstance(folded, LatentView):
        return LatentView(sae, split=True)
    try:
        return split(folded)
    except ConfigError:  # unrolled_abstopk of several steps: its encoder is not one affine map
        return LatentView(folded, split=True)


@torch.no_grad()
def unit_norm(sae: SAE[Any]) -> SAE[Any] | LatentView:
    """A copy of `sae` with unit decoder rows that computes the same reconstruction."""
    folded = copy.deepcopy(sae)
    try:
        folded.fold_W_dec_norm()
    except NotImplementedError:
        return LatentView(folded)
    return folded


def is_one_run(sae: SAE[Any]) -> bool:
    """Whether both protocols are the same run: a non-negative SAE is its own split."""
    return not is_signed(sae)
