"""Records of the architectures that stock SAELens loads: what the model card says of them.

Their latents are all non-negative, so each is its own polarity split. (`abstopk`, which SAELens has
too, has its record in `abstopk`.)
"""

from typing import Any

import torch

from sae_lens_bipolar.architectures.citations import GATED, JUMPRELU, TOPK
from sae_lens_bipolar.architectures.record import DECODE, LINEAR, Architecture, OneSided

_RELU = f"{LINEAR}z    = relu(u)\n"
_JUMP = f"{LINEAR}z    = relu(u) where u > threshold, else 0\n"
_SKIP = f"{DECODE} + x W_skip^T"


def _transcoder(name: str, title: str, encoder: str, decoder: str) -> Architecture:
    is_jump = encoder == _JUMP
    return Architecture(
        name=name,
        title=title,
        formula=f"{encoder}{decoder}\nwith x̂ the activation at another hook",
        source="SAELens, after arXiv 2407.14435" if is_jump else "SAELens",
        cites=(JUMPRELU,) if is_jump else (),
        signed=False,
    )


def _standard(sae: Any) -> OneSided:
    return OneSided(sae.W_enc, sae.b_enc, torch.zeros_like(sae.b_enc), free_scale=True)


def _topk(sae: Any) -> OneSided:
    free_scale = sae.cfg.rescale_acts_by_decoder_norm
    return OneSided(sae.W_enc, sae.b_enc, threshold=None, free_scale=free_scale)


def _jumprelu(sae: Any) -> OneSided:
    return OneSided(sae.W_enc, sae.b_enc, sae.threshold.clamp(min=0), free_scale=True)


def _gated(sae: Any) -> OneSided:
    # The gate opens where v > -b_gate, that is where the magnitude exceeds its value there.
    gain = sae.r_mag.exp()
    threshold = (sae.b_mag - gain * sae.b_gate).clamp(min=0)
    return OneSided(sae.W_enc * gain, sae.b_mag, threshold, free_scale=True)


RECORDS = (
    Architecture(
        name="standard",
        title="Standard (ReLU)",
        formula=f"{_RELU}{DECODE}",
        source="arXiv 2309.08600",
        cites=(),
        signed=False,
        one_sided=_standard,
    ),
    Architecture(
        name="topk",
        title="TopK: the k largest pre-activations",
        formula=f"{LINEAR}z    = relu(u) on the k largest of u, else 0\n{DECODE}",
        source="arXiv 2406.04093",
        cites=(TOPK,),
        signed=False,
        one_sided=_topk,
    ),
    Architecture(
        name="jumprelu",
        title="JumpReLU: a learned threshold per latent",
        formula=f"{_JUMP}{DECODE}",
        source="arXiv 2407.14435",
        cites=(JUMPRELU,),
        signed=False,
        one_sided=_jumprelu,
    ),
    Architecture(
        name="gated",
        title="Gated: one path decides whether a latent fires, another how strongly",
        formula=f"v    = (x - b_dec) W_enc\nz    = 1[v + b_gate > 0] relu(exp(r_mag) v + b_mag)\n"
        f"{DECODE}",
        source="arXiv 2404.16014",
        cites=(GATED,),
        signed=False,
        one_sided=_gated,
    ),
    Architecture(
        name="matching_pursuit",
        title="Matching pursuit: latents one at a time, each along its decoder row",
        formula="r    = x - b_dec, z = 0, and then again and again\n"
        "i    = the latent with the largest r · W_dec_i\n"
        "a    = relu(r · W_dec_i)        z_i <- z_i + a        r <- r - a W_dec_i\n"
        f"{DECODE}",
        source="SAELens",
        cites=(),
        signed=False,
    ),
    Architecture(
        name="temporal",
        title="Temporal: what attention to earlier tokens does not predict",
        formula="z    = relu(r W_enc / (4 d_in)), r being x less what attention predicts of it\n"
        "x̂    = (z + predicted latents) W_dec + b_dec",
        source="SAELens",
        cites=(),
        signed=False,
    ),
    _transcoder("transcoder", "Transcoder", _RELU, DECODE),
    _transcoder("skip_transcoder", "Transcoder with a skip", _RELU, _SKIP),
    _transcoder("jumprelu_transcoder", "JumpReLU transcoder", _JUMP, DECODE),
    _transcoder("jumprelu_skip_transcoder", "JumpReLU transcoder with a skip", _JUMP, _SKIP),
)
