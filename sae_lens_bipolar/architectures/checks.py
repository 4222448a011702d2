"""What the architectures check: configuration fields when built, activations at every step."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from sae_lens_bipolar.errors import ActivationError, ConfigError, did_you_mean


def require_k(k: Any, d_sae: int, field: str = "k", integer: bool = True) -> None:
    """Raise `ConfigError` unless `1 <= k <= d_sae`; with `integer=False` k may be fractional."""
    kind = "an integer" if integer else "a number"
    allowed = isinstance(k, int) or (not integer and isinstance(k, float))
    if isinstance(k, bool) or not allowed or not 1 <= k <= d_sae:
        raise ConfigError(
            f"{field}={k!r} is not allowed: {field} must be {kind} from 1 to d_sae ({d_sae}); "
            f"lower {field} or raise d_sae."
        )


def require_number(
    value: Any,
    field: str,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive: bool = False,
) -> None:
    """Raise `ConfigError` unless `value` is finite, `>= minimum` (`>` when `exclusive`) and
    `<= maximum`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    low = number and (value > minimum if exclusive else value >= minimum)
    if low and math.isfinite(value) and value <= maximum:
        return
    bounds = f" {'>' if exclusive else '>='} {minimum:g}" if minimum > -math.inf else ""
    bounds += f" and <= {maximum:g}" if maximum < math.inf else ""
    raise ConfigError(f"{field}={value!r} is not allowed: it must be a finite number{bounds}.")


def require_choice(value: Any, allowed: Sequence[str], field: str) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(
            f"{field}={value!r} is not allowed: it must be one of {', '.join(map(repr, allowed))}"
            f"{did_you_mean(str(value), allowed)}."
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
