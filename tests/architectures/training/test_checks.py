"""The checks every architecture shares: what passes, what is refused, and what the message says."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch

from sae_lens_bipolar.architectures.training.checks import check_fields, require_finite, require_k
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


def test_a_sum_that_overflows_is_no_bad_activation() -> None:
    require_finite(torch.full((4, 2), 3e38), "blocks.0.hook_resid_post", 0)
    with pytest.raises(ActivationError, match="1 NaN and 0 infinite values, in 1 of 4"):
        require_finite(torch.tensor([[3e38], [3e38], [math.nan], [0.0]]), None, 0)


@dataclass
class Fields:
    """One field of every kind that the architectures' configurations have."""

    d_in: int = 4
    d_sae: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    normalize_activations: str = "none"
    metadata: object = None
    start: Literal["zeros", "mean"] = "zeros"
    flag: bool = False
    rate: float = 0.5
    target: float | None = None
    widths: list[int] | None = None
    name: str = "a"
    decoder_init_norm: float | None = 0.1
    l1_coefficient: float = 1.0
    l1_warm_up_steps: int = 0


@pytest.mark.parametrize(
    "field",
    [
        *({"d_in": 1}, {"d_sae": 1}, {"rate": 1}, {"rate": -2.5}, {"target": None}, {"target": 3}),
        *({"widths": []}, {"widths": [1, 2]}, {"widths": None}, {"start": "mean"}, {"flag": True}),
        *({"metadata": 3}, {"metadata": math.nan}, {"decoder_init_norm": None}),
        *(
            {"l1_coefficient": 0},
            {"l1_warm_up_steps": 0},
            {"dtype": "bfloat16"},
            {"device": "meta"},
        ),
        *({"normalize_activations": "layer_norm"}, {"normalize_activations": "none"}),
    ],
    ids=str,
)
def test_fields_that_are_allowed(field: dict[str, Any]) -> None:
    check_fields(replace(Fields(), **field))


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ({"d_in": 0}, ">= 1"),
        ({"d_sae": 0}, ">= 1"),
        ({"d_sae": 8.0}, "an integer"),
        ({"d_sae": True}, "an integer"),
        ({"rate": math.nan}, "a finite number"),
        ({"rate": math.inf}, "a finite number"),
        ({"rate": True}, "a finite number"),
        ({"rate": "1"}, "a finite number"),
        ({"target": "1"}, "a finite number or None"),
        ({"target": math.inf}, "a finite number or None"),
        ({"widths": [1, "2"]}, "a list, each an integer or None"),
        ({"widths": (1, 2)}, "a list, each an integer or None"),
        ({"widths": [1.5]}, "a list, each an integer or None"),
        ({"start": "ones"}, "one of 'zeros', 'mean'"),
        ({"start": None}, "one of 'zeros', 'mean'"),
        ({"flag": 1}, "True or False"),
        ({"flag": None}, "True or False"),
        ({"name": 3}, "a string"),
        ({"normalize_activations": "layernorm"}, "'layer_norm'"),
        ({"dtype": "float31"}, "float32"),
        ({"device": "nowhere"}, "device"),
        ({"decoder_init_norm": 0.0}, "> 0"),
        ({"decoder_init_norm": -1.0}, "> 0"),
        ({"l1_coefficient": -0.5}, ">= 0"),
        ({"l1_warm_up_steps": -1}, ">= 0"),
    ],
    ids=str,
)
def test_fields_that_are_not(field: dict[str, Any], wanted: str) -> None:
    (name,) = field
    with pytest.raises(ConfigError, match=f"{name}=") as refused:
        check_fields(replace(Fields(), **field))
    assert wanted in str(refused.value)


def test_a_configuration_without_a_field_for_the_decoder() -> None:
    @dataclass
    class Small:
        d_in: int = 4
        dtype: str = "float32"
        device: str = "cpu"
        normalize_activations: str = "none"

    check_fields(Small())
