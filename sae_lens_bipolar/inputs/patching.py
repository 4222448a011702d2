"""Replacing attributes of a host for a while: the only way in which a host is changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from sae_lens_bipolar.errors import HostError


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of a module, class or object; restore them afterwards, even after an error.

    Raises:
        HostError: if `target` has no such attribute: the host has changed.
    """
    for name in attributes:
        if not hasattr(target, name):
            raise HostError(f"{_described(target)} has no {name}, which is to be replaced there")
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


def _described(target: Any) -> str:
    """The name of a module, class or object, and the version of the package it is from."""
    kind = target if hasattr(target, "__name__") else type(target)
    module = getattr(kind, "__module__", kind.__name__)
    package = module.partition(".")[0]
    try:
        distribution = packages_distributions()[package][0]
        return f"{kind.__name__} of {distribution} {version(distribution)}"
    except (KeyError, PackageNotFoundError):
        return kind.__name__
