"""From the value a user gives a latent to the change of `z`: modes, units, and their checks."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sae_lens.saes.sae import SAE

from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.polarity.splitting import is_signed
from sae_lens_bipolar.steering.units import UNITS, ExtrapolationWarning, Scale, Unit

Mode = Literal["clamp", "add", "ablate", "dial"]
MODES = ("clamp", "add", "ablate", "dial")


@dataclass(frozen=True)
class Turn:
    """`z'_i = factor * z_i + offset`."""

    latent: int
    factor: float
    offset: float
    extrapolated: bool = False  # towards a side on which the latent was never seen


def turns(
    sae: SAE[Any], values: Mapping[int, float], mode: Mode, unit: Unit, scale: Scale | None
) -> list[Turn]:
    """What the values do to the latents of `sae`; the formulas are those of `EditLatents`.

    Raises:
        ConfigError: for a latent or value that is not allowed, or a scale that is missing.

    Warns:
        ExtrapolationWarning: naming the latents turned to a side on which they were never seen.
    """
    require_choice(mode, MODES, "mode")
    require_choice(unit, UNITS, "unit")
    for latent, value in values.items():
        _check(sae, latent, value, mode)
    if scale is not None and len(scale.census.positive_max) != sae.cfg.d_sae:
        raise ConfigError(
            f"scale is of an SAE with {len(scale.census.positive_max)} latents, this one has "
            f"{sae.cfg.d_sae}: measure it for this SAE"
        )
    if mode == "ablate":
        return [Turn(latent, 1.0 - value, 0.0) for latent, value in values.items()]
    by_reach = mode == "dial" or unit == "own"
    if values and scale is None and (by_reach or unit == "norm"):
        what = "mode='dial'" if mode == "dial" else f"unit={unit!r}"
        raise ConfigError(
            f"{what} needs to know how far latents go: give scale=measure_scale(sae, model, text), "
            "or unit='raw' with mode 'clamp' or 'add'"
        )
    factor = 1.0 if mode == "add" else 0.0
    signed = is_signed(sae)
    if by_reach:
        found = [_by_reach(one, value, factor, scale) for one, value in values.items()]
    else:
        per_unit = dict.fromkeys(values, 1.0)
        if unit == "norm" and scale is not None and values:
            sizes = scale.norm_per_unit(sae, list(values)).tolist()
            per_unit = dict(zip(values, sizes, strict=True))
        found = [
            _by_unit(one, value, factor, per_unit[one], _shown(scale, one, value, signed))
            for one, value in values.items()
        ]
    _warn([turn.latent for turn in found if turn.extrapolated])
    return found


def _check(sae: SAE[Any], latent: int, value: float, mode: Mode) -> None:
    if not isinstance(latent, int) or isinstance(latent, bool) or not 0 <= latent < sae.cfg.d_sae:
        raise ConfigError(
            f"latent {latent!r} does not exist: this SAE has latents 0 to {sae.cfg.d_sae - 1}"
        )
    name = f"the value of latent {latent}"
    if mode == "dial":
        require_number(value, name, -1.0, 1.0)
    else:
        require_number(value, name)


def _by_reach(latent: int, value: float, factor: float, scale: Scale | None) -> Turn:
    assert scale is not None
    if value == 0:
        return Turn(latent, factor, 0.0)
    reach, borrowed = scale.reach(latent, 1 if value > 0 else -1)
    return Turn(latent, factor, value * reach, borrowed)


def _by_unit(latent: int, value: float, factor: float, per_unit: float, shown: bool) -> Turn:
    if per_unit == 0:
        raise ConfigError(f"latent {latent} has a decoder row of 0: it changes nothing")
    return Turn(latent, factor, value / per_unit, not shown)


def _shown(scale: Scale | None, latent: int, value: float, signed: bool) -> bool:
    """Whether the latent was, or may be, seen on the side of `value`."""
    if value == 0:
        return True
    if scale is None:
        return signed or value > 0
    sides = (scale.census.positive_max, scale.census.negative_max)
    return bool(sides[value < 0][latent] > 0)


def _warn(latents: list[int]) -> None:
    if latents:
        warnings.warn(
            f"latent {', '.join(map(str, latents))} never showed the sign it is turned to: what "
            "the model does with it is extrapolated",
            ExtrapolationWarning,
            stacklevel=7,
        )
