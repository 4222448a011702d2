"""What the architectures check: configuration fields when built, activations at every step."""

import math
from dataclasses import fields
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from sae_lens.constants import DTYPE_MAP
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_lens_bipolar.architectures.training.early_copy import EarlyCopy
from sae_lens_bipolar.errors import (
    ActivationError,
    ConfigError,
    require_choice,
    require_number,
)

# SAELens also takes one that its annotation leaves out (saes/sae.py:191-197 in 6.54.12).
_NORMALISATIONS = (
    *("none", "expected_average_only_in", "layer_norm"),
    *("covariance_whitening", "constant_norm_rescale"),
)
_LONGEST_ROW = 1e6  # norm of a decoder's row at the start
_SCALARS = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string"}


def check_fields(cfg: Any) -> None:
    """Raise `ConfigError` unless every field of an SAE's configuration has its declared type, the
    sizes are at least 1, and dtype and device exist; ranges are each architecture's to check.
    """
    require_choice(cfg.normalize_activations, _NORMALISATIONS, "normalize_activations")
    for name, hint in _hints(type(cfg)).items():
        value = getattr(cfg, name)
        if (wanted := _wanted(hint)) and not _fits(value, hint):
            raise ConfigError(f"{name}={value!r} is not allowed: it must be {wanted}.")
        if name in ("d_in", "d_sae"):
            require_number(value, name, 1)
        if name.endswith(("_coefficient", "_warm_up_steps")) and value is not None:
            require_number(value, name, 0)
    require_choice(cfg.dtype, tuple(DTYPE_MAP), "dtype")
    try:
        torch.device(cfg.device)
    except RuntimeError as error:
        raise ConfigError(f"device={cfg.device!r} is not allowed: {error}") from None
    if getattr(cfg, "decoder_init_norm", None) is not None:
        # Far beyond any use, and low enough that squares of it stay finite in float32.
        require_number(cfg.decoder_init_norm, "decoder_init_norm", 0, _LONGEST_ROW, exclusive=True)


@lru_cache
def _hints(cfg_class: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cfg_class)
    names = [field.name for field in fields(cfg_class)]
    return {name: hints[name] for name in names if name != "normalize_activations"}


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return isinstance(value, str) and value in inside
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inside[0]) for one in value)
    if hint in (int, float):
        number = isinstance(value, int | hint) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, hint)


def _wanted(hint: Any) -> str:
    """What a hint allows, in words; "" for a hint that is not checked, such as the metadata's."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        words = [_wanted(one) for one in inside]
        return " or ".join(words) if all(words) else ""
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inside))
    if origin is list:
        return f"a list, each {words}" if (words := _wanted(inside[0])) else ""
    return "None" if hint is type(None) else _SCALARS.get(hint, "")


def require_k(k: Any, d_sae: int, field: str = "k", integer: bool = True) -> None:
    """Raise `ConfigError` unless `1 <= k <= d_sae`; with `integer=False` k may be fractional."""
    kind = "an integer" if integer else "a number"
    allowed = isinstance(k, int) or (not integer and isinstance(k, float))
    if isinstance(k, bool) or not allowed or not 1 <= k <= d_sae:
        raise ConfigError(
            f"{field}={k!r} is not allowed: {field} must be {kind} from 1 to d_sae ({d_sae}); "
            f"lower {field} or raise d_sae."
        )


def require_finite(sae_in: torch.Tensor, hook_name: str | None, step: int) -> None:
    """Raise `ActivationError` if `sae_in` [batch, d_in] holds a NaN or an infinity.

    Args:
        sae_in: the batch an SAE is about to be trained on.
        hook_name: `cfg.metadata.hook_name`, named in the message.
        step: the number of training steps done before this batch.
    """
    if sae_in.detach().sum().isfinite():  # one pass; NaN and infinities survive a sum
        return
    finite = torch.isfinite(sae_in)
    if finite.all():  # the sum itself overflowed
        return
    activations = sae_in.numel() // sae_in.shape[-1]
    rows = int((~finite).reshape(activations, -1).any(dim=-1).sum())
    raise ActivationError(
        f"Activations at hook {hook_name or 'unknown'!r}, batch {step}, hold "
        f"{int(sae_in.isnan().sum())} NaN and {int(sae_in.isinf().sum())} infinite values, "
        f"in {rows} of {activations} activations. "
        "Load the model in float32 or bfloat16, or leave out the tokens that cause them."
    )


class RefusesBadActivations(TrainingSAE[Any]):
    """Mixin for a training SAE; stands first among the bases, so that the check comes first."""

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One forward pass with all losses.

        Raises:
            ActivationError: if the batch holds NaN or infinite values; on a GPU after the pass,
                which is queued while the device looks.
        """
        sae_in, step = step_input.sae_in, step_input.n_training_steps
        if not sae_in.is_cuda:
            require_finite(sae_in, self.cfg.metadata.hook_name, step)
            return super().training_forward_pass(step_input)
        total = EarlyCopy(sae_in.sum())
        output = super().training_forward_pass(step_input)
        if not math.isfinite(total.read()[0]):
            require_finite(sae_in, self.cfg.metadata.hook_name, step)
        return output
