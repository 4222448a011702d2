"""The polarity split: every signed SAE has an exact non-negative twin of twice the width.

With signed latents `z`, `[d_sae]`, the twin has latents `[relu(z), relu(-z)]`, `[2 d_sae]`, decoder
`[W_dec; -W_dec]` and the same `b_dec`. Where the encoder is one affine map the twin is a class of
stock SAELens, which loads, runs and evaluates without this package.
"""

import copy
from dataclasses import fields
from functools import singledispatch
from typing import Any, TypeVar

import torch
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.abstopk_sae import AbsTopKSAE
from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.standard_sae import StandardSAE
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import Transcoder
from sae_lens.util import str_to_dtype

from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUSAE
from sae_lens_bipolar.architectures.bi_topk import BiTopKSAE
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedSAE
from sae_lens_bipolar.architectures.unrolled_abstopk import UnrolledAbsTopKSAE
from sae_lens_bipolar.errors import ConfigError

C = TypeVar("C", bound=SAEConfig)


@torch.no_grad()
def split(sae: SAE[Any]) -> SAE[Any]:
    """The non-negative twin of `sae`: a stock `TopKSAE` or `JumpReLUSAE` of width `2 d_sae`.

    Latent `i` becomes `relu(z_i)` at `i` and `relu(-z_i)` at `d_sae + i`. With `W`, `b` the
    encoder of the source, its biases per side and `k`:

        abstopk            TopK(2 d_sae, k): [W, -W], [b, -b]
        bi_topk            TopK(2 d_sae, k): [W, -W], [b+, b-]
        bi_jumprelu        JumpReLU: [W, -W], [b, -b], thresholds [t+, t-]
        sign_aware_gated   JumpReLU: [e^{r+} W, -e^{r-} W], [b+, b-],
                           thresholds max(e^{r+-} theta+- + b+-, 0)

    Latents and reconstructions agree up to float rounding, which near a threshold, or between two
    latents that compete for the last place of a top-k, can decide which one fires. Where bi_topk
    keeps both sides of a latent, the split shows both, and `z_i` is their difference. A bi_jumprelu
    threshold below 0 counts as 0: JumpReLU has a relu.

    Configuration, dtype, device and metadata are the source's; the metadata gain
    `polarity_split_of` (the source's architecture) and `polarity_split_d_sae` (its width). A
    training SAE is taken in the form in which SAELens saves it for inference. A non-negative SAE
    is its own split.

    Args:
        sae: an SAE of this package or of SAELens, for inference or training.

    Returns:
        A new SAE that shares no memory with `sae`; `sae` itself if it is non-negative already.

    Raises:
        ConfigError: if the encoder is not one affine map (`unrolled_abstopk` with more than one
            step), or the architecture is unknown.
    """
    return _twin(inference_form(sae))


def is_signed(sae: SAE[Any]) -> bool:
    """Whether latents of `sae` may be below 0: True unless `split` knows that they are not."""
    sae_class = _inference_class(sae.cfg) if isinstance(sae, TrainingSAE) else type(sae)
    return _twin.dispatch(sae_class) is not _own_twin


def split_latents(latents: torch.Tensor) -> torch.Tensor:
    """`[relu(z), relu(-z)]`, `[..., 2 d_sae]` from signed latents `z`, `[..., d_sae]`."""
    return torch.cat([latents, -latents], dim=-1).relu()


def signed_latents(split_acts: torch.Tensor) -> torch.Tensor:
    """Signed latents of a split's: first half minus second, `[..., d_sae]` from `[..., 2 d_sae]`.

    Raises:
        ConfigError: if the last dimension is odd.
    """
    if split_acts.shape[-1] % 2:
        raise ConfigError(
            f"the latents of a polarity split come in two halves, so their number is even; "
            f"got {split_acts.shape[-1]}"
        )
    positive, negative = split_acts.chunk(2, dim=-1)
    return positive - negative


@torch.no_grad()
def inference_form(sae: SAE[Any]) -> SAE[Any]:
    """The SAE that saving `sae` for inference and loading it gives; an inference SAE as it is.

    Raises:
        ConfigError: if SAELens's registry holds no inference class for it.
    """
    if not isinstance(sae, TrainingSAE):
        return sae
    sae_class = _inference_class(sae.cfg)
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    cfg = SAEConfig.from_dict(copy.deepcopy(sae.cfg.get_inference_sae_cfg_dict()))
    return build(sae_class, cfg, state)


def _inference_class(cfg: TrainingSAEConfig) -> type[SAE[Any]]:
    architecture = cfg.get_inference_config_class().architecture()
    if architecture not in SAE_CLASS_REGISTRY:
        raise ConfigError(
            f"SAELens's registry holds no inference class {architecture!r}; "
            "call sae_lens_bipolar.register() first"
        )
    return SAE_CLASS_REGISTRY[architecture][0]


def build(sae_class: type[Any], cfg: SAEConfig, state: dict[str, torch.Tensor]) -> SAE[Any]:
    """An SAE made of `cfg` and `state`, without first allocating random weights."""
    device, cfg.device = cfg.device, "meta"  # as SAE.load_from_disk does
    sae = sae_class(cfg)
    sae.load_state_dict({name: t.detach() for name, t in state.items()}, assign=True)
    return sae.to(device=device, dtype=str_to_dtype(cfg.dtype))


def derived_config(cfg_class: type[C], source: SAEConfig, **changes: Any) -> C:
    """A `cfg_class` with the fields it shares with `source`, its metadata copied, and `changes`."""
    shared = {
        field.name: copy.deepcopy(getattr(source, field.name))
        for field in fields(cfg_class)
        if hasattr(source, field.name)
    }
    return cfg_class(**{**shared, **changes})


@singledispatch
def _twin(sae: SAE[Any]) -> SAE[Any]:
    raise ConfigError(
        f"no polarity split is known for architecture {sae.cfg.architecture()!r} "
        f"({type(sae).__qualname__})"
    )


def _own_twin(sae: SAE[Any]) -> SAE[Any]:
    return sae


for _non_negative in (
    *(StandardSAE, TopKSAE, JumpReLUSAE, GatedSAE),
    *(MatchingPursuitSAE, TemporalSAE, Transcoder),
):
    _twin.register(_non_negative, _own_twin)


@_twin.register
def _split_abstopk(sae: AbsTopKSAE) -> SAE[Any]:
    return _assemble(sae, TopKSAE, TopKSAEConfig, b_enc=(sae.b_enc, -sae.b_enc))


@_twin.register
def _(sae: BiTopKSAE) -> SAE[Any]:
    return _assemble(sae, TopKSAE, TopKSAEConfig, b_enc=(sae.b_positive, sae.b_negative))


@_twin.register
def _(sae: BiJumpReLUSAE) -> SAE[Any]:
    thresholds = (sae.threshold_positive, sae.threshold_negative)
    biases = (sae.b_enc, -sae.b_enc)
    return _assemble(sae, JumpReLUSAE, JumpReLUSAEConfig, b_enc=biases, threshold=thresholds)


@_twin.register
def _(sae: SignAwareGatedSAE) -> SAE[Any]:
    p = sae.polarities()
    sides = [
        (p.threshold_positive, p.gain_positive, p.bias_positive),
        (p.threshold_negative, p.gain_negative, p.bias_negative),
    ]
    # Where the magnitude's relu opens only after the gate, the relu decides: threshold 0.
    edges = [(gain * theta + bias).clamp(min=0) for theta, gain, bias in sides]
    if not sae.cfg.two_sided_gate:
        edges[1] = torch.full_like(edges[1], torch.inf)
    return _assemble(
        sae,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        gains=(p.gain_positive, p.gain_negative),
        b_enc=(p.bias_positive, p.bias_negative),
        threshold=edges,
    )


@_twin.register
def _(sae: UnrolledAbsTopKSAE) -> SAE[Any]:
    if sae.cfg.n_steps == 1:  # that is abstopk
        return _split_abstopk(sae)
    raise ConfigError(
        f"unrolled_abstopk with n_steps={sae.cfg.n_steps} has no polarity split: every step feeds "
        "the signed latents of the one before back through the decoder, and SAELens's TopKSAE and "
        "JumpReLUSAE encode with one affine map; use its signed latents, or n_steps=1"
    )


def _assemble(
    source: SAE[Any],
    sae_class: type[Any],
    cfg_class: type[SAEConfig],
    gains: tuple[torch.Tensor, torch.Tensor] | None = None,
    **per_side: Any,
) -> SAE[Any]:
    """A stock SAE of `[W, -W]`, `[W_dec; -W_dec]` and, by name, pairs of `[d_sae]` tensors."""
    positive = negative = source.W_enc
    if gains is not None:
        positive, negative = (source.W_enc * gain for gain in gains)
    state = {
        "W_enc": torch.cat([positive, -negative], dim=1),
        "W_dec": torch.cat([source.W_dec, -source.W_dec], dim=0),
        "b_dec": source.b_dec.clone(),
        **{name: torch.cat(list(pair)) for name, pair in per_side.items()},
    }
    cfg = derived_config(cfg_class, source.cfg, d_sae=2 * source.cfg.d_sae)
    cfg.metadata.polarity_split_of = source.cfg.architecture()
    cfg.metadata.polarity_split_d_sae = source.cfg.d_sae
    twin = build(sae_class, cfg, state)
    if not source.hook_z_reshaping_mode:  # switched off by hand: the input is flat already
        twin.turn_off_forward_pass_hook_z_reshaping()
    return twin
