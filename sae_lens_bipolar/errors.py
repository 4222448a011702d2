"""What this package raises on purpose, and the wording its messages share.

Every class is a `ValueError`, so code written against SAELens's own checks keeps working.
"""

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

LONGEST_MESSAGE = 4_000  # characters of an error that are shown
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # escapes and other control characters
    r"|[\u202a-\u202e\u2066-\u2069]"  # marks that reverse the direction of text
    r"|[\ud800-\udfff]"  # halves of characters, which cannot be printed
)


def shown(text: Any, limit: int = 200) -> str:
    """`text` fit for a terminal: control characters escaped, at most about `limit` characters.

    What is cut out of the middle is counted: `abc [4096 characters left out] xyz`. Terminal escapes
    and marks that reverse the direction of text appear as `\\x1b` and `\\u202e`; line breaks and
    tabs stay.
    """
    found = str(text)
    if len(found) > limit:
        head, tail = found[: limit * 3 // 4], found[len(found) - limit // 4 :]
        found = f"{head} [{len(found) - len(head) - len(tail)} characters left out] {tail}"
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), found)


class BipolarError(ValueError):
    """Base of every error this package raises on purpose; its message is bounded and printable."""

    def __init__(self, *args: Any):
        super().__init__(
            *(shown(arg, LONGEST_MESSAGE) if isinstance(arg, str) else arg for arg in args)
        )


class ConfigError(BipolarError):
    """A configuration field, command-line option or YAML key has a value that is not allowed."""


class ModelError(BipolarError):
    """A language model cannot be found, fetched, verified or loaded, or has no such hook."""


class DataError(BipolarError):
    """Text or tokens cannot be found or read, or hold nothing to train on."""


class ActivationError(BipolarError):
    """Activations are NaN or infinite; the message names the hook and the batch."""


class TrainingError(BipolarError):
    """Training diverged: a loss or weights are no longer finite."""


class CheckpointError(BipolarError):
    """A checkpoint is incomplete, damaged, or belongs to another architecture."""


class LockError(BipolarError):
    """Another process works in the run directory; the message names it."""


class RankError(BipolarError):
    """A rank of a distributed run ended, or is not set up like the others."""


class UnsafePathError(BipolarError):
    """Where a file of ours belongs stands a link that leads away, a device, or a stranger's folder.

    Nothing was read, written or deleted through it; the message names it.
    """


class DiskFullError(BipolarError):
    """A disk or quota is full; what was finished before is whole."""


class HubError(BipolarError):
    """The Hugging Face Hub refused, failed or could not be reached while publishing."""


class HostError(BipolarError):
    """An installed host lacks what this package needs of it; the message names both."""


class BenchError(BipolarError):
    """A suite of SAEBench cannot run, or gave no result; the message says what is missing."""


def host_lacks(what: str, cause: Exception) -> HostError:
    """The error for `what`, which cannot be loaded since a host lacks a name that it needs.

    It names the versions that are installed, and those that this package works with.
    """
    try:
        wanted = [need for need in requires("sae-lens-bipolar") or [] if ";" not in need]
    except PackageNotFoundError:  # a source tree that was never installed
        wanted = []
    works = f"; it works with {', '.join(wanted)}" if wanted else ""
    return HostError(f"{what} cannot be used here: {cause}. Installed: {_installed()}{works}")


def _installed() -> str:
    found = []
    for host in ("sae-lens", "transformer-lens", "transformers", "torch"):
        try:
            found.append(f"{host} {version(host)}")
        except PackageNotFoundError:
            found.append(f"no {host}")
    return ", ".join(found)


def did_you_mean(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return `"; did you mean 'a', 'b'?"` with the known names nearest to `name`, or `""`."""
    near = get_close_matches(name, list(known), n=n, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


def require_number(
    value: Any,
    field: str,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive: bool = False,
) -> None:
    """Raise `ConfigError` unless `value` is finite, `>= minimum` (`>` when `exclusive`) and
    `<= maximum`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    low = number and (value > minimum if exclusive else value >= minimum)
    if low and _is_finite(value) and value <= maximum:
        return
    bounds = f" {'>' if exclusive else '>='} {minimum:g}" if minimum > -math.inf else ""
    bounds += f" and <= {maximum:g}" if maximum < math.inf else ""
    raise ConfigError(
        f"{field}={_described(value)} is not allowed: it must be a finite number{bounds}."
    )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _described(value: Any) -> str:
    try:
        return shown(repr(value))
    except ValueError:  # more digits than Python prints
        return f"a number of about 2**{value.bit_length()}"


def require_choice(value: Any, allowed: Sequence[str], field: str) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(
            f"{field}={value!r} is not allowed: it must be one of {', '.join(map(repr, allowed))}"
            f"{did_you_mean(str(value), allowed)}."
        )
