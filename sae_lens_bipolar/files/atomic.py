"""Files that are either whole or absent: atomic writes, and checksums for what is fetched."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What safetensors and torch say instead of raising an OSError with its number.
_SAID_FULL = (
    *("os error 28", "os error 27", "No space left", "File too large"),
    *("PytorchStreamWriter failed writing", "iostream error"),
)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; what is written there becomes `target` on success.

    Works for a file and for a directory. On an exception the temporary path is removed and
    `target` keeps what it held before. A process that is killed leaves `target` untouched.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield scratch / target.name
        _replace(scratch / target.name, target, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_scratch(directory: str | Path) -> None:
    """Remove what killed writers left below `directory`; nobody else may be writing there."""
    for scratch in [path for path in Path(directory).rglob(".*.tmp") if path.is_dir()]:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(new: Path, target: Path, scratch: Path) -> None:
    if target.is_dir():  # a directory cannot be renamed over a full one: move the old one aside
        os.replace(target, scratch / "replaced")
    os.replace(new, target)


@contextmanager
def explaining_full_disk(directory: str | Path) -> Iterator[None]:
    """Turn whatever a writer raises on a full disk, below `directory`, into DiskFullError."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        raise DiskFullError(
            f"no space left while writing below {directory}: what was finished before is whole; "
            "free some space, or raise the quota, and run the same command again"
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _SAID_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented strict JSON (NaN is refused)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def user_cache_dir() -> Path:
    """Where fetched assets are kept: $SAE_LENS_BIPOLAR_CACHE, else ~/.cache/sae-lens-bipolar."""
    chosen = os.environ.get("SAE_LENS_BIPOLAR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sae-lens-bipolar"
