"""Which arithmetic a training step runs on: dense, on active pairs by torch, or by Triton kernels.

On a CPU the density decides, as measured there. On a GPU the step is SAELens's dense one, unless a
table that was measured on that very device says otherwise: `sae-lens-bipolar tune` makes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch

from sae_lens_bipolar.errors import ConfigError, did_you_mean
from sae_lens_bipolar.sparse import triton
from sae_lens_bipolar.sparse.measured import Arithmetic, Work, measured_here, precision

Mode = Literal["auto", "sparse", "triton", "dense"]
_MODES = ("auto", "sparse", "triton", "dense")
_mode: ContextVar[str] = ContextVar("sae_lens_bipolar.sparse.mode", default="auto")

# The density (active pairs / (batch * d_sae)) above which dense products are faster, where no table
# was measured.
CROSSOVER = {"cpu": 0.15}
_DTYPES = (torch.float32, torch.float64)


def set_mode(mode: Mode) -> None:
    """Choose from here on: "sparse", "triton", "dense", or "auto" (the default), by measurement."""
    if mode not in _MODES:
        raise ConfigError(
            f"mode is {mode!r}; allowed: {', '.join(_MODES)}{did_you_mean(str(mode), _MODES)}"
        )
    _mode.set(mode)


@contextmanager
def mode(mode: Mode) -> Iterator[None]:
    """`set_mode(mode)` inside a `with` block; afterwards the previous mode is restored."""
    before = _mode.get()
    set_mode(mode)
    try:
        yield
    finally:
        _mode.set(before)


def prefer_sparse(density: float, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether sparse code is faster at this density; `mode` may overrule it.

    Args:
        density: active pairs divided by `batch * d_sae`; `k / d_sae` for top-k.
        device: where the parameters are.
        dtype: the parameters' dtype; anything but float32 and float64 is left to dense code.
    """
    if dtype not in _DTYPES or _mode.get() == "dense":
        return False
    return _mode.get() != "auto" or density <= CROSSOVER.get(device.type, 0.0)


def is_always_dense(W_dec: torch.Tensor) -> bool:
    """Whether steps of an SAE with this decoder are dense at any density."""
    if W_dec.dtype not in _DTYPES or _mode.get() == "dense":
        return True
    return (
        _mode.get() == "auto"
        and W_dec.device.type not in CROSSOVER
        and not measured_here(W_dec.device)
    )


def arithmetic(density: float, W_dec: torch.Tensor, batch: int) -> Arithmetic:
    """What a step of `batch` samples is faster on at this density; `mode` may overrule it.

    Args:
        density: active pairs divided by `batch * d_sae`.
        W_dec: `[d_sae, d_in]`; its shape, device and dtype count.
        batch: samples per step.
    """
    if is_always_dense(W_dec):
        return "dense"
    chosen: Arithmetic | None = None
    if _mode.get() == "auto" and W_dec.dtype == torch.float32:
        d_sae, d_in = W_dec.shape
        work = Work(precision(W_dec.device), d_in, d_sae, density, batch)
        chosen = work.fastest(measured_here(W_dec.device))
    if chosen is None:
        chosen = "sparse" if prefer_sparse(density, W_dec.device, W_dec.dtype) else "dense"
    if _mode.get() == "triton":
        chosen = "triton"
    runs = W_dec.dtype == torch.float32 and triton.usable(W_dec.device, W_dec.shape[1])
    return "sparse" if chosen == "triton" and not runs else chosen
