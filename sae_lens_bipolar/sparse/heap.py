"""Memory of large gradients stays with the process, on Linux with glibc.

glibc maps a block above 32 MiB anew each time and gives it back at once (mallopt(3),
M_MMAP_THRESHOLD), so every training step of a wide SAE on a CPU pages its two gradients in again,
one fault per 4 KiB. Once such an SAE trains, freed blocks are kept for the next step, up to 2 GiB
each. The process then holds what its largest step needed until it ends.
"""

import ctypes
from functools import cache
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as in malloc.h
_MAPPED = 1 << 25  # bytes from which glibc maps a block, at the most, if left alone
_MOST = (1 << 31) - 1  # what mallopt takes
_enabled = False
_kept = False


def ask_for(parameter: torch.Tensor) -> None:
    """Keep freed memory if a gradient of this parameter is one that glibc would map anew."""
    if _enabled and not _kept and parameter.device.type == "cpu" and parameter.nbytes > _MAPPED:
        _set(kept=True)


def enable() -> None:
    """From here on keep memory once a wide SAE trains."""
    global _enabled
    _enabled = True


def disable() -> None:
    """Undo `enable`, and give freed memory back."""
    global _enabled
    _enabled = False
    if _kept:
        _set(kept=False)


def is_kept() -> bool:
    """Whether freed memory is kept now."""
    return _kept


def _set(kept: bool) -> None:
    global _kept
    library = _glibc()
    if library is None:
        return
    _kept = kept
    library.mallopt(_M_MMAP_THRESHOLD, _MOST if kept else _MAPPED)
    library.mallopt(_M_TRIM_THRESHOLD, _MOST if kept else 2 * _MAPPED)
    if not kept:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library of this process, if it is glibc."""
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version, library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no such library
        return None
    return library
