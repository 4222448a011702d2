"""What was measured on a device: seconds of a training step by arithmetic, in one table per device.

`sae-lens-bipolar tune` writes the table; training reads it once per process. A table of another
device or of other versions is not used, and a malformed one is refused as a whole.
"""

import contextlib
import logging
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.atomic import read_json, user_cache_dir, write_json
from sae_lens_bipolar.files.fields import a_list, an_object, check_number, required

logger = logging.getLogger(__name__)

Arithmetic = Literal["dense", "sparse", "triton"]
ARITHMETICS: tuple[Arithmetic, ...] = ("dense", "sparse", "triton")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
FORMAT = 1
# What is not faster than the dense step by this factor does not replace it: two measurements of one
# step differ by about as much.
_MARGIN = 0.95


@dataclass(frozen=True)
class Work:
    """What decides how long a training step takes on a device."""

    precision: str  # of products: see PRECISIONS
    d_in: int
    d_sae: int
    density: float  # active pairs / (batch * d_sae)
    batch: int  # samples per step

    def fastest(self, rows: "Sequence[Row]") -> Arithmetic | None:
        """The arithmetic that won on the largest measured work no larger and no sparser than this.

        Sparse arithmetic gains as steps grow larger and sparser, and starting kernels then costs
        ever less beside them; so a row says nothing of smaller or denser work. None: no row does.
        """
        below = [row for row in rows if row.says_something_of(self)]
        if not below:
            return None
        return max(below, key=lambda row: (row.d_sae, -row.density, row.d_in, row.batch)).winner


@dataclass(frozen=True)
class Row:
    """One measurement: the work, and the median seconds of a step of each arithmetic."""

    precision: str
    d_in: int
    d_sae: int
    k: int
    batch: int
    seconds: dict[str, float]  # by arithmetic, "dense" among them

    @property
    def density(self) -> float:
        return self.k / self.d_sae

    @property
    def winner(self) -> Arithmetic:
        """The fastest, or "dense" unless another is at least 5% faster."""
        best = min(ARITHMETICS, key=lambda name: self.seconds.get(name, float("inf")))
        return best if self.seconds[best] <= _MARGIN * self.seconds["dense"] else "dense"

    def says_something_of(self, work: Work) -> bool:
        """Whether `work` has this precision, is at least as large in each size, and as sparse."""
        return (
            self.precision == work.precision
            and self.d_in <= work.d_in
            and self.d_sae <= work.d_sae
            and self.batch <= work.batch
            and self.density >= work.density
        )


def precision(device: torch.device) -> str:
    """The precision of products now: autocast's dtype, "tf32", or "float32"."""
    if torch.is_autocast_enabled(device.type):
        return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
    if device.type != "cuda":
        return "float32"
    try:
        return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "float32"
    except RuntimeError:  # set by torch's newer switches; no row has this name
        return "unknown"


def device_name(device: torch.device) -> str:
    """What a table is named by: the GPU's model, or the kind of device and the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):  # Linux; platform.processor() would start a process
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{device.type} {line.partition(':')[2].strip()}"
    return f"{device.type} {platform.machine()}"


def table_of(device: torch.device) -> Path:
    """Where the table of a device is kept, below the user's cache."""
    return user_cache_dir() / "arithmetic" / f"{file_name(device_name(device))}.json"


def file_name(text: str) -> str:
    """A text as the stem of a file: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def versions() -> dict[str, str]:
    """Versions that a measurement hangs on."""
    found = {}
    for package in ("sae-lens-bipolar", "torch", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def write_table(rows: Sequence[Row], device: torch.device) -> Path:
    """Write the table of a device, whole or not at all; the old one is replaced."""
    path = table_of(device)
    head = {"format": FORMAT, "device": device_name(device), "versions": versions()}
    write_json(path, {**head, "rows": [asdict(row) for row in rows]})
    measured_here.cache_clear()
    return path


def read_table(path: Path, device: torch.device) -> tuple[Row, ...]:
    """Rows of a table of this device and these versions.

    Raises:
        FileNotFoundError: if there is none.
        DataError: naming the file and what is wrong with it.
    """
    again = "run `sae-lens-bipolar tune` again"
    table = an_object(read_json(path), str(path))
    for key, here in (
        ("format", FORMAT),
        ("device", device_name(device)),
        ("versions", versions()),
    ):
        if (there := required(table, key, str(path))) != here:
            raise DataError(f"{path}: {key} is {there!r}, and here it is {here!r}; {again}")
    rows = a_list(required(table, "rows", str(path)), f"{path}: 'rows'")
    return tuple(_row(row, f"{path}: rows[{i}]") for i, row in enumerate(rows))


def _row(value: Any, where: str) -> Row:
    fields = an_object(value, where)
    for name in ("d_in", "d_sae", "k", "batch"):
        size = required(fields, name, where)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"{where}: {name!r} is {size!r}; expected an integer from 1")
    if fields["k"] > fields["d_sae"]:
        raise DataError(f"{where}: 'k' is {fields['k']}; expected at most d_sae={fields['d_sae']}")
    if (precise := required(fields, "precision", where)) not in PRECISIONS:
        raise DataError(f"{where}: 'precision' is {precise!r}; expected one of {PRECISIONS}")
    seconds = an_object(required(fields, "seconds", where), f"{where}: 'seconds'")
    required(seconds, "dense", f"{where}: 'seconds'")
    for name, value in seconds.items():
        check_number(value, f"{where}: seconds of {name!r}")
        if name not in ARITHMETICS or value <= 0:
            raise DataError(
                f"{where}: seconds of {name!r} is {value}; expected a positive number for one of "
                f"{ARITHMETICS}"
            )
    if extra := fields.keys() - {*Row.__dataclass_fields__}:
        raise DataError(f"{where}: {sorted(extra)} are no fields of a row")
    return Row(**fields)


@cache
def measured_here(device: torch.device) -> tuple[Row, ...]:
    """Rows of this device's table; none, and a warning that says why, if it cannot be used."""
    path = table_of(device)
    try:
        return read_table(path, device)
    except FileNotFoundError:
        if device.type == "cuda":
            logger.warning(
                "No step times of this %s yet: SAEs train with dense steps. `sae-lens-bipolar "
                "tune`, a minute's work, measures whether sparse ones are faster here.",
                device_name(device),
            )
        return ()
    except (DataError, OSError) as error:
        logger.warning("The table of measured step times is not used. %s", error)
        return ()
