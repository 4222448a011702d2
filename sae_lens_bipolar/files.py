"""Files that are either whole or absent: atomic writes, and checksums for what is fetched."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
