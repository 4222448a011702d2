"""Fields of a sweep's configuration that are refused."""

from typing import Any

import pytest

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.runs.sweep_config import SweepConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training_tokens", 1),
        ("n_checkpoints", -1),
        ("seed", -1),
        ("reading", "x"),
        ("lr", 0.0),
        ("arithmetic", "fast"),
    ],
)
def test_fields_that_are_not_allowed(field: str, value: object) -> None:
    options: dict[str, Any] = {field: value}
    with pytest.raises(ConfigError, match=field):
        SweepConfig(**options)
