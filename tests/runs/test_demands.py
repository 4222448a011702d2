"""The rows of text that a run demands."""

from sae_lens_bipolar.runs.demands import rows_needed
from tests.runs.test_runner import make_config


def test_rows_needed_are_enough_and_not_far_too_many() -> None:
    cfg = make_config(32)
    # 640 tokens at 15 per row, two batches for the estimate, an 8-row buffer
    assert rows_needed(cfg) == 43 + 5 + 9 + 4
