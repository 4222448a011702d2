"""Triton kernels for NVIDIA GPUs: the arithmetic on active pairs, without host synchronisation.

An optional import: nothing here is loaded unless a step runs on kernels. Each kernel names its
dense equivalent, and the same tests hold it to that under Triton's interpreter and on a device.
Sums are taken in float32, whatever the dtype of the rows they read.
"""

import importlib.util
import os
from functools import cache

import torch

LARGEST_D_IN = 1 << 14  # a program of `_sums_by_latent` holds whole rows in registers


def usable(device: torch.device, d_in: int) -> bool:
    """Whether kernels can run on a device, or, on a CPU, whether Triton interprets them there."""
    return d_in <= LARGEST_D_IN and (device.type == "cuda" or is_interpreted()) and _is_installed()


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether `TRITON_INTERPRET=1` was set before Triton was imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"
