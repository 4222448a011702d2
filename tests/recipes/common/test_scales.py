"""Settings are read by scale, and checked field by field with the nearest name in the message."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipes.common.scales import Resources, build, read_scale
from sae_lens_bipolar.errors import ConfigError, require_number


@dataclass(frozen=True)
class Settings:
    widths: tuple[int, ...]
    lr: float = 0.1

    def __post_init__(self) -> None:
        require_number(self.lr, "lr", 0)


def test_a_scale_is_read_by_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("small: {seeds: 3}\npaper: {seeds: 5}\n")
    assert read_scale(file, "paper") == {"seeds": 5}
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        read_scale(file, "smal")


@pytest.mark.parametrize("text", ["- small\n", "small: {seeds\n", None])
def test_a_file_that_holds_no_scales_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"--config .*recipe\.yaml"):
        read_scale(file, "small")


def test_lists_become_tuples() -> None:
    assert build(Settings, {"widths": [8, 16]}, "a scale") == Settings((8, 16))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": [8]}, "a scale has no setting 'width'; did you mean 'widths'"),
        ({"widths": [8], "zzz": 1}, "a scale has no setting 'zzz'; it has widths, lr"),
        ({"lr": 1.0}, "a scale lacks 'widths'"),
        ({"widths": [8], "lr": -1.0}, "lr=-1.0 is not allowed"),
    ],
)
def test_settings_that_are_not_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Settings, values, "a scale")


@pytest.mark.parametrize("field", ["num_cpus", "num_gpus", "retries"])
def test_resources_that_cannot_be(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Resources(**{field: -1})
