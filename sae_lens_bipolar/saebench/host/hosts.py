"""The hosts' versions this code answers to, and replacing their attributes for a while."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sae_lens_bipolar.errors import BipolarError

logger = logging.getLogger(__name__)
# Every workaround below names the file:line it answers to in these versions.
ANSWERED = "0.6.0"
_SERIES = "0.6."


class BenchError(BipolarError):
    """A suite cannot run, or gave no result; the message says what is missing."""


def require_saebench() -> str:
    """The installed version of SAEBench.

    Raises:
        BenchError: if it is not installed, or of a series whose internals are not known here.
    """
    try:
        found = version("sae-bench")
    except PackageNotFoundError as error:
        raise BenchError(
            "SAEBench is not installed: pip install 'sae-lens-bipolar[bench]'"
        ) from error
    if not found.startswith(_SERIES):
        raise BenchError(
            f"sae-bench {found} is installed; its suites are worked around for {ANSWERED} only: "
            f"pip install 'sae-bench>={ANSWERED},<0.7'"
        )
    if found != ANSWERED:
        logger.warning("sae-bench %s is installed; this package answers to %s", found, ANSWERED)
    return found


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of a module, class or object for the duration, whatever happens.

    Raises:
        BenchError: if `target` has no such attribute: the host has changed.
    """
    for name in attributes:
        if not hasattr(target, name):
            where = getattr(target, "__name__", type(target).__name__)
            raise BenchError(f"{where} has no {name}: another version than {ANSWERED}?")
    own = vars(target)
    before = {name: own[name] for name in attributes if name in own}
    try:
        for name, value in attributes.items():
            setattr(target, name, value)
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(target, name, before[name])
            elif name in vars(target):
                delattr(target, name)
