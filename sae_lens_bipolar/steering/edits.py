"""What can be done to activations: add a vector, remove a direction, or edit latents of an SAE.

Equations 20 to 22 are those of arXiv 2510.00404. An edit is a value: it holds what is done and
where; `steering` applies it to the tokens that are to be edited.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from sae_lens.saes.sae import SAE
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.saes.transcoder import Transcoder

from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.polarity.splitting import inference_form
from sae_lens_bipolar.steering.hook_points import Model, n_layers
from sae_lens_bipolar.steering.turning import Mode, Turn, turns
from sae_lens_bipolar.steering.units import Scale, Unit, latents_of


class Edit(Protocol):
    """A change of activations at one hook or several."""

    def hooks_in(self, model: Model) -> list[str]:
        """Names of the hooks in `model` at which `apply` is used."""
        ...

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Changed activations, `[n, ...]` from `[n, ...]`."""
        ...


@dataclass(frozen=True, eq=False)
class AddVector:
    """Activation addition at one hook (eq. 20): `x' = x + strength * vector`.

    Raises:
        ConfigError: if the strength or an entry of the vector is not finite.
    """

    vector: torch.Tensor  # [d_in]; or [heads, d_head] at hook_z
    strength: float  # 0 changes nothing
    hook: str  # TransformerLens hook name, or module path in a Transformers model

    def __post_init__(self) -> None:
        _check_vector(self.vector)
        require_number(self.strength, "strength")

    def hooks_in(self, model: Model) -> list[str]:
        """The one hook of this edit."""
        return [self.hook]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """`x + strength * vector`, `[n, d_in]`."""
        if self.strength == 0:
            return x
        return _in_float(x, lambda wide: wide + self.strength * _fitted(self.vector, wide))


@dataclass(frozen=True, eq=False)
class AblateDirection:
    """Directional ablation (eq. 21): `x' = x - strength * d (d . x)`, with `d = vector / |vector|`.

    Args:
        vector: `[d_in]`, of any length but 0.
        strength: share of the component along `d` that is removed; 1 removes it, 2 mirrors it.
        hooks: hook names; "all" means the residual stream before the first block and after every
            block, as the paper ablates at all layers.

    Raises:
        ConfigError: if the vector is 0, or a number is not finite.
    """

    vector: torch.Tensor
    strength: float = 1.0
    hooks: Literal["all"] | str | Sequence[str] = "all"

    def __post_init__(self) -> None:
        _check_vector(self.vector)
        require_number(self.strength, "strength")
        if not self.vector.any():
            raise ConfigError("vector is 0: it has no direction that could be ablated")

    def hooks_in(self, model: Model) -> list[str]:
        """The hooks named, or those of "all"."""
        if self.hooks == "all":
            after = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers(model))]
            return ["blocks.0.hook_resid_pre", *after]
        return [self.hooks] if isinstance(self.hooks, str) else list(self.hooks)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with its component along the vector scaled by `1 - strength`, `[n, d_in]`."""
        if self.strength == 0:
            return x

        def ablated(wide: torch.Tensor) -> torch.Tensor:
            d = _fitted(self.vector, wide).flatten()
            flat, d = wide.flatten(1), d / d.norm()
            return (flat - self.strength * (flat @ d)[:, None] * d).view_as(wide)

        return _in_float(x, ablated)


@dataclass(frozen=True, eq=False)
class EditLatents:
    """Edit latents of an SAE where it reads the model.

    With `z = encode(x)` and `v` the value of latent `i`:

        clamp    z'_i = v
        add      z'_i = z_i + v
        ablate   z'_i = (1 - v) z_i
        dial     v in [-1, 1]: z'_i = v m, with m the largest |z_i| seen on the side of v

        keep     x' = x + decode(z') - decode(z): x itself, bit for bit, where z' = z
        drop     x' = decode(z') (eq. 22 to the letter: what the SAE does not explain is lost)

    The value of clamp and add is in a `unit`: "own" (v m), "raw" (v), or "norm" (the step of x is
    v times the median |x| long). A training SAE is taken in its form for inference. No value with
    `error="drop"` is the control "SAE inserted, nothing steered".

    Raises:
        ConfigError: for a latent the SAE does not have, a value that is not finite, or a unit that
            needs a `scale`.

    Warns:
        ExtrapolationWarning: if a latent is turned to a side on which it was never seen.
    """

    sae: SAE[Any]  # any SAE of this package or SAELens that encodes token by token
    values: Mapping[int, float]  # latent -> v
    mode: Mode = "clamp"
    unit: Unit = "own"
    error: Literal["keep", "drop"] = "keep"
    scale: Scale | None = None  # from measure_scale; needed by "own", "norm" and "dial"
    hook: str | None = None  # None: the SAE's own, cfg.metadata.hook_name

    def __post_init__(self) -> None:
        require_choice(self.error, ("keep", "drop"), "error")
        if isinstance(self.sae, TemporalSAE | Transcoder):
            raise ConfigError(
                f"architecture {self.sae.cfg.architecture()!r} cannot be edited: it "
                + (
                    "reads whole sequences, which a cache of keys and values does not hold"
                    if isinstance(self.sae, TemporalSAE)
                    else "reads one hook and writes another; add its decoder row with AddVector"
                )
            )
        _ = self._turns  # checks the values now, not in the middle of a run

    @property
    def extrapolated(self) -> tuple[int, ...]:
        """Latents turned to a side on which they were never seen."""
        return tuple(turn.latent for turn in self._turns if turn.extrapolated)

    @cached_property
    def _turns(self) -> list[Turn]:
        return turns(self._inference, self.values, self.mode, self.unit, self.scale)

    @cached_property
    def _inference(self) -> SAE[Any]:
        return inference_form(self.sae)

    def hooks_in(self, model: Model) -> list[str]:
        """The hook of the SAE, or the one given.

        Raises:
            ConfigError: if neither is known.
        """
        hook = self.hook or self.sae.cfg.metadata.hook_name
        if not hook:
            raise ConfigError("the SAE's metadata name no hook: give EditLatents(..., hook=...)")
        return [str(hook)]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The edited activations, `[n, d_in]`, or `[n, heads, d_head]` at hook_z."""
        # Parameters of an SAE ask for gradients; activations of a plain forward pass do not.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            return self._edited(x)

    def _edited(self, x: torch.Tensor) -> torch.Tensor:
        sae = self._inference
        _require_width(sae.cfg.d_in, x)
        if self.error == "keep" and not self._turns:
            return x
        shape = x.shape
        held = x if sae.hook_z_reshaping_mode else x.flatten(1)
        z = latents_of(sae, held)
        new = z.clone()
        for turn in self._turns:
            new[:, turn.latent] = turn.factor * z[:, turn.latent] + turn.offset
        decoded = sae.decode(new)
        if self.error == "drop":
            return decoded.view(shape).to(x.device, x.dtype)
        # Decoding used up what a normalisation per token had kept of x.
        sae.process_sae_in(held.to(sae.device))
        step = (decoded - sae.decode(z)).view(shape).to(x.device)
        changed = (new != z).any(-1).to(x.device)
        changed = changed.view(-1, *[1] * (x.ndim - 1))
        return torch.where(changed, (x + step).to(x.dtype), x)


def _check_vector(vector: torch.Tensor) -> None:
    if not isinstance(vector, torch.Tensor) or vector.ndim not in (1, 2):
        shape = list(getattr(vector, "shape", ()))
        raise ConfigError(f"vector has shape {shape}: it must be a tensor [d_in]")
    if not torch.isfinite(vector).all():
        raise ConfigError("vector holds NaN or infinite values")


def _require_width(d_in: int, x: torch.Tensor) -> None:
    width = x[0].numel() if len(x) else x.flatten(1).shape[1]
    if d_in != width:
        raise ConfigError(
            f"the edit is for activations of width {d_in}, the hook gives {width}: edit and model "
            "do not belong together, or the hook is another"
        )


def _fitted(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The vector in the shape, dtype and place of one activation of `x`."""
    _require_width(vector.numel(), x)
    return vector.detach().to(x.device, x.dtype).reshape(x.shape[1:])


def _in_float(x: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`change(x)` computed in at least float32, in the dtype of `x`."""
    return change(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)
