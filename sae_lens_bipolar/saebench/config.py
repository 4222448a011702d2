"""What one benchmark runs, and at which sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from sae_lens_bipolar.errors import ConfigError, did_you_mean
from sae_lens_bipolar.saebench.options import PROTOCOLS
from sae_lens_bipolar.saebench.suites.absorption import AbsorptionOptions
from sae_lens_bipolar.saebench.suites.core import CoreOptions
from sae_lens_bipolar.saebench.suites.ravel import RavelOptions
from sae_lens_bipolar.saebench.suites.record import require_allowed
from sae_lens_bipolar.saebench.suites.registry import SUITES
from sae_lens_bipolar.saebench.suites.scr import ScrOptions
from sae_lens_bipolar.saebench.suites.sparse_probing import SparseProbingOptions
from sae_lens_bipolar.saebench.suites.unlearning import UnlearningOptions

_DTYPES = ("float32", "bfloat16", "float16")


# Fields come in the order of the bases from last to first: the common ones, then suite by suite.
@dataclass(frozen=True)
class BenchConfig(
    CoreOptions,
    UnlearningOptions,
    RavelOptions,
    SparseProbingOptions,
    ScrOptions,
    AbsorptionOptions,
):
    """Suites, protocols and sizes; every field is an option of `sae-lens-bipolar bench`.

    The fields are those of `CommonOptions` and of each suite's own options, which stand in the
    suite's file. The defaults are SAEBench's own sizes. A batch size of None is chosen from the
    memory that is free, and never changes what is measured beyond float rounding.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    suites: tuple[str, ...] = tuple(SUITES)  # which suites

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as YAML gives it
                object.__setattr__(self, field.name, value := tuple(value))
            self._require_kind(field.name, value, isinstance(field.default, tuple))
            self._require_positive(field.name, value)
        require_allowed("suites", self.suites, tuple(SUITES))
        require_allowed("protocols", self.protocols, PROTOCOLS)
        require_allowed("llm_dtype", self.llm_dtype, _DTYPES)
        for suite in SUITES.values():
            for name, allowed in suite.allowed.items():
                require_allowed(name, getattr(self, name), allowed)
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device={self.device!r} is not a torch device") from error

    def _require_kind(self, name: str, value: Any, several: bool) -> None:
        if several and (not isinstance(value, tuple) or not value):
            raise ConfigError(f"{name}={value!r} must be a list of one or more")

    def _require_positive(self, name: str, value: Any) -> None:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if number < (0 if name == "seed" else 1) and not (
                isinstance(number, float) and number > 0
            ):
                raise ConfigError(f"{name}={value!r} must be positive")

    @classmethod
    def at_scale(cls, scale: str, **changes: Any) -> "BenchConfig":
        """The sizes of a scale, "full" (SAEBench's own) or "small" (minutes on two cores).

        Raises:
            ConfigError: for an unknown scale or field, or a value that is not allowed.
        """
        require_allowed("scale", scale, tuple(SCALES))
        known = [field.name for field in fields(cls)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"{name!r} is not an option of bench{did_you_mean(name, known)}")
        try:
            return cls(**{**SCALES[scale], **changes})
        except TypeError as error:
            raise ConfigError(f"bench: {error}") from error


SCALES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "small": {name: value for suite in SUITES.values() for name, value in suite.small.items()},
}
