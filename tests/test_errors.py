"""The wording that errors share: bounded, printable, and never an error of its own."""

import math

import pytest

from sae_lens_bipolar.errors import ConfigError, host_lacks, require_number


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 10**6000, math.nan, math.inf, True, None, "3", 1j, [1], "x" * 10**6],
    ids=lambda value: str(type(value).__name__),
)
def test_what_is_no_finite_number_is_refused_in_a_short_sentence(value: object) -> None:
    with pytest.raises(ConfigError, match=r"lr=.* is not allowed: it must be a finite number") as e:
        require_number(value, "lr")
    assert len(str(e.value)) < 600


def test_bounds() -> None:
    require_number(2**62, "n", 1)
    require_number(0.5, "x", 0, 1)
    for value, exclusive in ((0, True), (-1, False), (2, False)):
        with pytest.raises(ConfigError, match=r"x=-?\d is not allowed: .* <= 1"):
            require_number(value, "x", 0, 1, exclusive)


def test_what_a_host_lacks_is_said_with_the_versions_that_have_it() -> None:
    said = str(host_lacks("architecture 'x'", ImportError("cannot import name 'Y' from 'Z'")))
    assert "architecture 'x' cannot be used here: cannot import name 'Y' from 'Z'" in said
    assert "sae-lens" in said.partition("it works with ")[2]
