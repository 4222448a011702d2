"""What this package raises on purpose, and the wording its messages share.

Every class is a `ValueError`, so code written against SAELens's own checks keeps working.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class BipolarError(ValueError):
    """Base of every error this package raises on purpose."""


class ConfigError(BipolarError):
    """A configuration field, command-line option or YAML key has a value that is not allowed."""


class ModelError(BipolarError):
    """A language model cannot be found, fetched, verified or loaded, or has no such hook."""


class DataError(BipolarError):
    """Text or tokens cannot be found or read, or hold nothing to train on."""


class ActivationError(BipolarError):
    """Activations are NaN or infinite; the message names the hook and the batch."""


class CheckpointError(BipolarError):
    """A checkpoint is incomplete, damaged, or belongs to another architecture."""


class LockError(BipolarError):
    """Another process works in the run directory; the message names it."""


class DiskFullError(BipolarError):
    """A disk or quota is full; what was finished before is whole."""


class HubError(BipolarError):
    """The Hugging Face Hub refused, failed or could not be reached while publishing."""


def did_you_mean(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return `"; did you mean 'a', 'b'?"` with the known names nearest to `name`, or `""`."""
    near = get_close_matches(name, list(known), n=n, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""
