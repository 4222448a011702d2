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


def test_the_mixing_buffer_holds_a_step() -> None:
    """SAELens raises it only in training, once the model is loaded."""
    few: dict[str, Any] = {
        "context_size": 128,
        "n_batches_in_buffer": 4,
        "train_batch_size_tokens": 512,
    }
    SweepConfig(**few)
    message = r"n_batches_in_buffer=4 .* train_batch_size_tokens=513; give at least 5, or"
    with pytest.raises(ConfigError, match=message):
        SweepConfig(**{**few, "train_batch_size_tokens": 513})
    message = r"sequences of 100 tokens must hold .* give at least 6,"
    with pytest.raises(ConfigError, match=message):
        SweepConfig(**few, options={"seqpos_slice": (None, 100)})
