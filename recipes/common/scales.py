"""Scales of a recipe: settings in a YAML file, checked field by field against a dataclass."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sae_lens_bipolar.errors import ConfigError, did_you_mean, require_number

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one cell of a recipe takes; recipes' configurations derive from it.

    Raises:
        ConfigError: if a number is out of range.
    """

    num_cpus: int = 1  # cores per cell, which are also torch's threads inside it
    num_gpus: float = 0  # GPUs per cell
    retries: int = 1  # times a failed cell is started again

    def __post_init__(self) -> None:
        require_number(self.num_cpus, "num_cpus", 1)
        require_number(self.num_gpus, "num_gpus", 0)
        require_number(self.retries, "retries", 0)


def read_scale(file: Path, scale: str) -> dict[str, Any]:
    """The settings of one scale in a recipe's YAML file.

    Raises:
        ConfigError: if the file cannot be read or has no such scale.
    """
    try:
        scales = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file} cannot be read: {error}") from error
    if not isinstance(scales, dict):
        raise ConfigError(f"--config {file} must hold scales, each a mapping of settings")
    if scale not in scales:
        raise ConfigError(
            f"--scale {scale!r} is not in {file}, which has {', '.join(scales)}"
            f"{did_you_mean(scale, scales)}"
        )
    return scales[scale]


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from settings as YAML gives them; lists become tuples.

    Args:
        kind: the dataclass.
        values: its fields.
        where: what error messages call the place the settings stand in.

    Raises:
        ConfigError: naming a setting that is unknown, missing, or has a value that is not allowed.
    """
    known = fields(kind)  # type: ignore[arg-type]
    names = [field.name for field in known]
    for key in values:
        if key not in names:
            hint = did_you_mean(key, names) or f"; it has {', '.join(names)}"
            raise ConfigError(f"{where} has no setting {key!r}{hint}")
    needed = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(map(repr, missing))}: give a value")
    tuples = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    try:
        return kind(**tuples)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
