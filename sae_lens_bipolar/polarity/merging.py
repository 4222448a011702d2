"""The inverse of the polarity split: antipodal pairs of a non-negative SAE become signed latents.

A pair is two latents whose decoder rows, and whose encoder columns, point in opposite directions.
Activations from the caller show what a pair loses when its two directions become one.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sae_lens.saes.sae import SAE, SAEConfig
from torch.nn.functional import normalize

from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUSAE, BiJumpReLUSAEConfig
from sae_lens_bipolar.architectures.bi_topk import BiTopKSAE, BiTopKSAEConfig
from sae_lens_bipolar.architectures.record import OneSided
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, record_of
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedSAE,
    SignAwareGatedSAEConfig,
)
from sae_lens_bipolar.architectures.training.precision import in_float64
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.polarity.antipodal import antipodal_pairs
from sae_lens_bipolar.polarity.splitting import build, derived_config, inference_form, is_signed

JumpTarget = Literal["bi_jumprelu", "sign_aware_gated"]
_EXACT = 1e-5  # relative difference of gains and biases below which a pair counts as exact


@dataclass(frozen=True, eq=False)
class MergeResult:
    """A signed SAE and where its latents come from.

    Args:
        sae: the signed SAE, of width `d_sae - n_pairs`.
        members: `[width, 2]`: the source's latents that are its positive and its negative side;
            -1 where that side is empty. Latents keep the order of their positive sides.
        pairs: `[n_pairs, 2]`: the rows of `members` that are pairs.
        decoder_cosine: `[n_pairs]`, cosine of the pair's decoder rows.
        encoder_cosine: `[n_pairs]`, cosine of the pair's encoder columns.
        mse_before: mean squared error of the source, per entry of `x`; None without `x`.
        mse_after: the same for `sae`.
    """

    sae: SAE[Any]
    members: torch.Tensor
    pairs: torch.Tensor
    decoder_cosine: torch.Tensor
    encoder_cosine: torch.Tensor
    mse_before: float | None
    mse_after: float | None


@torch.no_grad()
def merge(
    sae: SAE[Any],
    *,
    cosine_threshold: float = 0.9,
    encoder_cosine_threshold: float | None = None,
    target: JumpTarget | None = None,
    x: torch.Tensor | None = None,
) -> MergeResult:
    """Fold the antipodal pairs of a non-negative SAE into signed latents.

    With a pair `(i, j)`, `i < j`, the signed latent is positive where `i` fired and negative where
    `j` did. Its decoder row is `(d_i - d_j) / 2`, the least-squares fit to both; its encoder column
    likewise; biases and thresholds stay per side. Other latents keep their positive side only.
    Where scaling an encoder and inversely its decoder changes nothing (all but TopK on unscaled
    activations), both decoder rows are first scaled to one norm, and the activations with them.

        topk                         becomes bi_topk, exact for exactly opposite pairs
        standard, jumprelu, gated    becomes bi_jumprelu, exact if moreover the encoders have one
                                     norm and b_j = -b_i, else a pair's values shift by
                                     (b_i + b_j) / 2; or sign_aware_gated, exact if every side
                                     is silent at u = 0

    Args:
        sae: topk, standard, jumprelu, gated, or what trains to one; merging the split of a signed
            SAE gives that SAE's latents back.
        cosine_threshold: `t` in (0, 1]; a pair has decoder cosine `<= -t`.
        encoder_cosine_threshold: the same for encoder columns; None: the decoder's.
        target: the architecture for SAEs other than TopK; None: whichever of the two represents
            more latents exactly, `bi_jumprelu` if they tie.
        x: activations, `[batch, d_in]`, on which reconstruction is measured before and after.

    Raises:
        ConfigError: if a threshold is out of range, or `sae` is signed already or of an
            architecture without one affine encoder.
    """
    if target not in (None, "bi_jumprelu", "sign_aware_gated"):
        raise ConfigError(
            f"target is {target!r}; allowed: 'bi_jumprelu', 'sign_aware_gated', or None to choose"
        )
    source = inference_form(sae)
    if is_signed(source):
        raise ConfigError(
            f"{source.cfg.architecture()!r} is signed already; merge folds a non-negative SAE"
        )
    wide = _widened(source)
    form = _one_sided(wide)
    if form.threshold is None and target is not None:
        raise ConfigError(f"target is {target!r}, but a TopK SAE can only become bi_topk")
    matched = antipodal_pairs(form.W_enc.T, wide.W_dec, cosine_threshold, encoder_cosine_threshold)
    sides = _fold(form, wide.W_dec, matched.pairs)
    merged = (
        _to_bi_topk(source, sides) if form.threshold is None else _to_jump(source, sides, target)
    )
    if not source.hook_z_reshaping_mode:
        merged.turn_off_forward_pass_hook_z_reshaping()
    return MergeResult(
        sae=merged,
        members=sides.members,
        pairs=matched.pairs,
        decoder_cosine=matched.decoder_cosine,
        encoder_cosine=matched.encoder_cosine,
        mse_before=None if x is None else _mse(source, x),
        mse_after=None if x is None else _mse(merged, x),
    )


def _one_sided(sae: SAE[Any]) -> OneSided:
    form = record_of(sae.cfg.to_dict()).one_sided
    if form is None:
        known = [record.name for record in ARCHITECTURES.values() if record.one_sided is not None]
        raise ConfigError(
            f"merge needs an SAE with one affine encoder: {', '.join(known)}; got "
            f"{sae.cfg.architecture()!r}"
        )
    return form(sae)


def _widened(sae: SAE[Any]) -> SAE[Any]:
    """`sae` in float32 if it is in half precision."""
    wide = torch.promote_types(sae.dtype, torch.float32)
    return sae if sae.dtype == wide else copy.deepcopy(sae).to(wide)


@dataclass(frozen=True, eq=False)
class _TwoSided:
    """The signed latents before an architecture is chosen; `[2, width]` is positive, negative."""

    members: torch.Tensor  # [width, 2]
    paired: torch.Tensor  # [width] bool
    W_enc: torch.Tensor  # [d_in, width], the mean of both sides
    W_dec: torch.Tensor  # [width, d_in]
    b: torch.Tensor  # [2, width]; 0 on an empty side
    threshold: torch.Tensor | None  # [2, width]; infinite on an empty side
    gain: torch.Tensor  # [2, width]: norm of each side's encoder along the shared direction


def _fold(form: OneSided, decoder: torch.Tensor, pairs: torch.Tensor) -> _TwoSided:
    d_sae, device = len(form.bias), form.bias.device
    i, j = pairs.to(device).unbind(dim=1)
    partner = torch.full((d_sae,), -1, dtype=torch.long, device=device)
    partner[i] = j
    absorbed = torch.zeros(d_sae, dtype=torch.bool, device=device)
    absorbed[j] = True
    first = (~absorbed).nonzero().squeeze(1)
    paired = partner[first] >= 0
    i, j = first[paired], partner[first[paired]]

    scale = torch.ones_like(form.bias)
    if form.free_scale:
        norms = decoder.norm(dim=1)
        scale[i] = (norms[i] / norms[j]).sqrt()
        scale[j] = 1 / scale[i]
    W_dec = decoder[first]
    W_dec[paired] = (decoder[i] / scale[i, None] - decoder[j] / scale[j, None]) / 2
    positive, negative = form.W_enc[:, i] * scale[i], form.W_enc[:, j] * scale[j]
    W_enc = form.W_enc[:, first]
    W_enc[:, paired] = (positive - negative) / 2
    direction = normalize(normalize(positive, dim=0) - normalize(negative, dim=0), dim=0)

    def per_side(values: torch.Tensor, empty: float) -> torch.Tensor:
        both = torch.stack([values[first], torch.full_like(values[first], empty)])
        both[0, paired], both[1, paired] = values[i] * scale[i], values[j] * scale[j]
        return both

    gain = W_enc.norm(dim=0).repeat(2, 1)
    gain[0, paired] = (direction * positive).sum(0)
    gain[1, paired] = -(direction * negative).sum(0)
    return _TwoSided(
        members=torch.stack([first, partner[first]], dim=1).cpu(),
        paired=paired,
        W_enc=W_enc,
        W_dec=W_dec,
        b=per_side(form.bias, 0.0),
        threshold=None if form.threshold is None else per_side(form.threshold, torch.inf),
        gain=gain,
    )


def _to_bi_topk(source: SAE[Any], sides: _TwoSided) -> SAE[Any]:
    """u = x W_enc with one bias per side; that of an empty side is too low ever to fire."""
    never = torch.finfo(source.dtype).min / 4
    state = {
        "b_positive": sides.b[0],
        "b_negative": torch.where(sides.paired, sides.b[1], never),
    }
    return _signed(source, sides, BiTopKSAE, BiTopKSAEConfig, state)


def _to_jump(source: SAE[Any], sides: _TwoSided, target: JumpTarget | None) -> SAE[Any]:
    assert sides.threshold is not None
    if target is None:
        b, gain = sides.b, sides.gain
        tied = (gain[0] - gain[1]).abs() <= _EXACT * gain[0]
        opposite = b.sum(0).abs() <= _EXACT * b.abs().amax(0)
        silent_at_0 = (b <= sides.threshold).all(0)
        jump_misses = (sides.paired & ~(tied & opposite)).sum()
        target = "bi_jumprelu" if jump_misses <= (~silent_at_0).sum() else "sign_aware_gated"
    return {"bi_jumprelu": _to_bi_jumprelu, "sign_aware_gated": _to_gated}[target](source, sides)


def _to_bi_jumprelu(source: SAE[Any], sides: _TwoSided) -> SAE[Any]:
    """u = x W_enc + b with one bias: where the two sides' differ, the thresholds move instead."""
    assert sides.threshold is not None
    b = torch.where(sides.paired, (sides.b[0] - sides.b[1]) / 2, sides.b[0])
    shift = torch.where(sides.paired, sides.b.sum(0) / 2, 0.0)
    threshold = (sides.threshold - shift).clamp(min=0)
    state = {"b_enc": b, "threshold_positive": threshold[0], "threshold_negative": threshold[1]}
    return _signed(source, sides, BiJumpReLUSAE, BiJumpReLUSAEConfig, state)


def _to_gated(source: SAE[Any], sides: _TwoSided) -> SAE[Any]:
    """u along the shared direction; theta = (threshold - b) / gain, raised to 0 if below it."""
    assert sides.threshold is not None
    scale = sides.gain.prod(dim=0).sqrt()
    gain = sides.gain / scale
    theta = ((sides.threshold - sides.b) / gain).clamp(min=torch.finfo(source.dtype).tiny)
    state = {
        "W_enc": normalize(sides.W_enc, dim=0) * scale,
        "log_threshold": theta.log(),
        "log_gain": gain.log(),
        "b_mag": sides.b,
    }
    return _signed(
        source, sides, SignAwareGatedSAE, SignAwareGatedSAEConfig, state, symmetry="none"
    )


def _signed(
    source: SAE[Any],
    sides: _TwoSided,
    sae_class: type[Any],
    cfg_class: type[SAEConfig],
    state: dict[str, torch.Tensor],
    **fields: Any,
) -> SAE[Any]:
    cfg = derived_config(cfg_class, source.cfg, d_sae=len(sides.members), **fields)
    for name in ("polarity_split_of", "polarity_split_d_sae"):
        cfg.metadata.__dict__.pop(name, None)
    cfg.metadata.merged_from = source.cfg.architecture()
    cfg.metadata.merged_pairs = int(sides.paired.sum())
    weights = {"W_enc": sides.W_enc, "W_dec": sides.W_dec, "b_dec": source.b_dec, **state}
    return build(sae_class, cfg, {name: t.to(source.dtype) for name, t in weights.items()})


def _mse(sae: SAE[Any], x: torch.Tensor, rows: int = 512) -> float:
    """Mean squared error per entry of `x`, without any error term."""
    total = 0.0
    for chunk in x.split(rows):
        chunk = chunk.to(sae.device)
        recons = sae.decode(sae.encode(chunk))
        total += (in_float64(recons) - in_float64(chunk)).pow(2).sum().item()
    return total / x.numel()
