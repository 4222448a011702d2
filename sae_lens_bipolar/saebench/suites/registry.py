"""The suites, by name, in the order in which they are run and shown."""

from collections.abc import Mapping
from typing import Any

from sae_lens_bipolar.saebench.suites import (
    absorption,
    core,
    ravel,
    scr,
    sparse_probing,
    tpp,
    unlearning,
)
from sae_lens_bipolar.saebench.suites.checks import check
from sae_lens_bipolar.saebench.suites.record import Suite

SUITES: Mapping[str, Suite[Any]] = {
    module.SUITE.name: module.SUITE
    for module in (absorption, scr, tpp, ravel, unlearning, sparse_probing, core)
}
for _suite in SUITES.values():
    check(_suite)
