"""The polarity split: a signed SAE as an exact non-negative twin of twice the width.

With signed latents `z`, `[d_sae]`, the twin has latents `[relu(z), relu(-z)]`, `[2 d_sae]`, decoder
`[W_dec; -W_dec]` and the same `b_dec`. Where the encoder is one affine map the twin is a class of
stock SAELens, which loads, runs and evaluates without this package.
"""

import copy
from dataclasses import fields
from typing import Any, TypeVar

import torch
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.util import str_to_dtype

from sae_lens_bipolar.architectures.record import Architecture, Sides
from sae_lens_bipolar.architectures.registry import record_of
from sae_lens_bipolar.errors import ConfigError

C = TypeVar("C", bound=SAEConfig)


@torch.no_grad()
def split(sae: SAE[Any]) -> SAE[Any]:
    """The non-negative twin of `sae`: a stock `TopKSAE` or `JumpReLUSAE` of width `2 d_sae`.

    Latent `i` becomes `relu(z_i)` at `i` and `relu(-z_i)` at `d_sae + i`. With `W` the encoder and
    the `Sides` that the architecture's record gives (gains, biases and thresholds per side), the
    twin has the encoder `[gain+ W, -gain- W]`, biases `[bias+, bias-]` and either the thresholds
    `[threshold+, threshold-]` (JumpReLU) or, without thresholds, the source's `k` (TopK).

    Latents and reconstructions agree up to float rounding, which near a threshold, or between two
    latents that compete for the last place of a top-k, can decide which one fires. Where bi_topk
    keeps both sides of a latent, the split shows both, and `z_i` is their difference. A bi_jumprelu
    threshold below 0 counts as 0: JumpReLU has a relu.

    Configuration, dtype, device and metadata are the source's; the metadata gain
    `polarity_split_of` (the source's architecture) and `polarity_split_d_sae` (its width). A
    training SAE is taken in the form in which SAELens saves it for inference. A non-negative SAE
    that stock SAELens loads is its own split.

    Args:
        sae: an SAE of this package or of SAELens, for inference or training.

    Returns:
        A new SAE that shares no memory with `sae`; `sae` itself if it is its own split.

    Raises:
        ConfigError: if the encoder is not one affine map (`unrolled_abstopk` with more than one
            step), the architecture has no record, or its record knows no split.
    """
    source = inference_form(sae)
    record = _record_of(source)
    if record.sides is not None:
        return _assemble(source, record.sides(source))
    if not record.signed:
        return source
    raise ConfigError(
        f"no polarity split is known for architecture {record.name!r}: its record gives no `sides`"
    )


def is_signed(sae: SAE[Any]) -> bool:
    """Whether latents of `sae` may be below 0, as the record of its architecture says.

    A training SAE is taken in the form in which SAELens saves it for inference.

    Raises:
        ConfigError: if the architecture has no record.
    """
    return _record_of(sae).signed


def _record_of(sae: SAE[Any]) -> Architecture:
    if isinstance(sae, TrainingSAE):
        return record_of(sae.cfg.get_inference_sae_cfg_dict())
    record = record_of(sae.cfg.to_dict())
    if record.inference is not None and not isinstance(sae, record.inference[0]):
        raise ConfigError(
            f"architecture {record.name!r} is described for {record.inference[0].__qualname__}, "
            f"and this SAE is of class {type(sae).__qualname__}; give its configuration another "
            "architecture() and describe that by sae_lens_bipolar.register(Architecture(...))"
        )
    return record


def split_latents(latents: torch.Tensor) -> torch.Tensor:
    """`[relu(z), relu(-z)]`, `[..., 2 d_sae]` from signed latents `z`, `[..., d_sae]`."""
    return torch.cat([latents, -latents], dim=-1).relu()


def signed_latents(split_acts: torch.Tensor) -> torch.Tensor:
    """Signed latents from those of a split, `[..., 2 d_sae]`: first half minus second.

    Returns:
        `[..., d_sae]`.

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
    """The SAE that saving `sae` for inference and loading it gives; an inference SAE unchanged.

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


def _assemble(source: SAE[Any], sides: Sides) -> SAE[Any]:
    """The stock SAE with `[W, -W]`, `[W_dec; -W_dec]` and the concatenated tensors of `sides`."""
    positive = negative = source.W_enc
    if sides.gain is not None:
        positive, negative = (source.W_enc * gain for gain in sides.gain)
    state = {
        "W_enc": torch.cat([positive, -negative], dim=1),
        "W_dec": torch.cat([source.W_dec, -source.W_dec], dim=0),
        "b_dec": source.b_dec.clone(),
        "b_enc": torch.cat(sides.bias),
    }
    sae_class, cfg_class = TopKSAE, TopKSAEConfig
    if sides.threshold is not None:
        sae_class, cfg_class = JumpReLUSAE, JumpReLUSAEConfig
        state["threshold"] = torch.cat(sides.threshold)
    cfg = derived_config(cfg_class, source.cfg, d_sae=2 * source.cfg.d_sae)
    cfg.metadata.polarity_split_of = source.cfg.architecture()
    cfg.metadata.polarity_split_d_sae = source.cfg.d_sae
    twin = build(sae_class, cfg, state)
    if not source.hook_z_reshaping_mode:  # switched off by hand: the input is flat already
        twin.turn_off_forward_pass_hook_z_reshaping()
    return twin
