"""Float32 matrix products on a CPU through oneDNN, where a check finds that faster and as exact.

`torch.mm` takes MKL, which on AMD processors with AVX-512 runs well below what they can do.
Under `torch.set_float32_matmul_precision("medium")` torch takes oneDNN instead (torch 2.13,
aten/src/ATen/native/mkldnn/Matmul.cpp): on some processors in true float32, on those with AMX in
bfloat16, on older ones not at all. So the first product measures both, and the switch, which is of
the whole process, stands around a product only where it may. A choice is kept on disk per
processor, number of threads and torch.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache

import torch

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.atomic import read_json, user_cache_dir, write_json
from sae_lens_bipolar.files.fields import an_object, check_number, required
from sae_lens_bipolar.sparse.measured import device_name, file_name

logger = logging.getLogger(__name__)

# Rows, inner size and columns: a tile of an encoder's product, and a layer of a language model.
_SHAPES = ((512, 768, 8192), (1024, 576, 1536))
_REPEATS = 3
_FASTER = 1.1  # what is not faster by this is not worth another summation order
_AS_EXACT = 2.0  # times the error that torch's own product has
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Products:
    """How oneDNN compares with torch's own product, at the least favourable size."""

    speedup: float  # seconds of torch's own product over oneDNN's
    error: float  # largest error of oneDNN's over the largest entry, against float64
    own_error: float  # the same of torch's own

    @property
    def used(self) -> bool:
        """Whether oneDNN is faster and as exact."""
        return self.speedup >= _FASTER and self.error <= _AS_EXACT * self.own_error


@contextmanager
def fast_products(device: torch.device = _CPU) -> Iterator[None]:
    """Float32 products inside the block run through oneDNN where that is faster and as exact.

    Nothing happens on other devices, and where a precision was chosen already.
    """
    if device.type != "cpu" or _precision() != "highest" or not choice().used:
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer switches, per backend
        return "unknown"


@cache
def choice() -> Products:
    """What was measured on this machine: read from disk, or measured now."""
    mark = {"processor": device_name(_CPU), "threads": torch.get_num_threads()}
    name = file_name(f"{mark['processor']} {mark['threads']}")
    file = user_cache_dir() / "products" / f"{name}.json"
    mark |= {"torch": torch.__version__}
    try:
        saved = an_object(read_json(file), str(file))
        if all(required(saved, key, str(file)) == value for key, value in mark.items()):
            return _read(saved, str(file))
    except FileNotFoundError:
        pass
    except (DataError, OSError) as error:
        logger.warning("Measuring matrix products again. %s", error)
    found = measure()
    try:
        write_json(file, {**mark, **asdict(found)})
    except OSError as error:
        logger.warning("What was measured of matrix products is not kept. %s", error)
    return found


def _read(saved: dict[str, object], where: str) -> Products:
    values = {name: required(saved, name, where) for name in Products.__dataclass_fields__}
    for name, value in values.items():
        check_number(value, f"{where}: {name!r}")
    return Products(**{name: float(value) for name, value in values.items()})


@torch.no_grad()
def measure() -> Products:
    """Time both products in turn, and compare each with the product in float64."""
    speedups, errors, own_errors = [], [], []
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in _SHAPES:
        a, b = (
            torch.randn(size, generator=generator) for size in ((rows, inner), (inner, columns))
        )
        few = slice(0, 64)
        exact = a[few].cpu().double() @ b.cpu().double()
        seconds: dict[str, list[float]] = {"highest": [], "medium": []}
        error: dict[str, float] = {}
        for _ in range(1 + _REPEATS):
            for precision, taken in seconds.items():
                found, time_taken = _timed_product(a, b, precision)
                taken.append(time_taken)
                off = (found[few].cpu().double() - exact).abs().max() / exact.abs().max()
                error[precision] = off.item()
        own, other = (min(taken[1:]) for taken in seconds.values())
        speedups.append(own / other)
        errors.append(error["medium"])
        own_errors.append(error["highest"])
    worst = max(range(len(_SHAPES)), key=lambda i: errors[i] / own_errors[i])
    return Products(min(speedups), errors[worst], own_errors[worst])


def _timed_product(a: torch.Tensor, b: torch.Tensor, precision: str) -> tuple[torch.Tensor, float]:
    """`a @ b` under a precision, which is put back, and its seconds."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        start = time.perf_counter()
        found = a @ b
        return found, time.perf_counter() - start
    finally:
        torch.set_float32_matmul_precision(before)
