"""The checks every architecture shares: what passes, what is refused, and what the message says."""

import math
from typing import Any

import pytest
import torch

from sae_lens_bipolar.architectures.training.checks import require_finite, require_k
from sae_lens_bipolar.errors import ActivationError, ConfigError, require_choice, require_number


def test_k_at_its_bounds() -> None:
    require_k(1, 8)
    require_k(8, 8)
    require_k(1.5, 8, integer=False)


@pytest.mark.parametrize("k", [0, 9, -1, 2.0, True, None, "4"])
def test_k_outside_its_bounds(k: Any) -> None:
    with pytest.raises(ConfigError, match=r"k_aux=.*from 1 to d_sae \(8\)"):
        require_k(k, 8, field="k_aux")


@pytest.mark.parametrize("k", [0.5, 8.5, math.nan, math.inf])
def test_fractional_k_outside_its_bounds(k: float) -> None:
    with pytest.raises(ConfigError, match="a number from 1"):
        require_k(k, 8, integer=False)


def test_numbers() -> None:
    require_number(0, "x", minimum=0)
    require_number(1.0, "x", minimum=0, maximum=1)
    require_number(-5.0, "x")
    with pytest.raises(ConfigError, match=r"x=0 .*finite number > 0\."):
        require_number(0, "x", minimum=0, exclusive=True)
    with pytest.raises(ConfigError, match=r"x=1\.5 .*>= 0 and <= 1\."):
        require_number(1.5, "x", minimum=0, maximum=1)
    for bad in (math.inf, math.nan, None, "1", True):
        with pytest.raises(ConfigError, match="x="):
            require_number(bad, "x")


def test_choices_suggest_the_nearest() -> None:
    require_choice("step", ["step", "tanh"], "mode")
    with pytest.raises(ConfigError, match=r"mode='stepp'.*did you mean 'step'"):
        require_choice("stepp", ["step", "tanh"], "mode")


def test_bad_activations_are_counted_and_located() -> None:
    x = torch.zeros(2, 3, 4)
    require_finite(x, "blocks.1.hook_resid_post", 0)
    x[0, 1, 2] = math.nan
    x[0, 1, 3] = math.inf
    x[1, 2, 0] = -math.inf
    message = r"'blocks\.1\.hook_resid_post', batch 7, hold 1 NaN and 2 infinite values, in 2 of 6"
    with pytest.raises(ActivationError, match=message):
        require_finite(x, "blocks.1.hook_resid_post", 7)
    with pytest.raises(ActivationError, match="unknown"):
        require_finite(x, None, 7)
