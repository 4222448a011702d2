"""Files that are either whole or absent: atomic writes, and checksums for what is fetched."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import ConfigError, DiskFullError
from sae_lens_bipolar.files.fields import load_json
from sae_lens_bipolar.files.paths import open_regular, remove_tree

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What safetensors and torch say instead of raising an OSError with its number.
_SAID_FULL = (
    *("os error 28", "os error 27", "No space left", "File too large"),
    *("PytorchStreamWriter failed writing", "iostream error"),
)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
# A name that nobody else uses: prefix, what was to be written, eight random characters.
_SCRATCH = re.compile(r"\.sae-lens-bipolar-(?P<name>.*)-[a-z0-9_]{8}\.tmp", re.DOTALL)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; what is written there becomes `target` on success.

    Works for a file and for a directory. On an exception the temporary path is removed and
    `target` keeps what it held before. A process that is killed leaves `target` untouched. Where
    `target` is a link, the link is replaced, and what it leads to stays as it is.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = new_scratch(target)
    try:
        yield scratch / target.name
        _replace(scratch / target.name, target, scratch)
    finally:
        remove_tree(scratch)


def new_scratch(target: Path) -> Path:
    """An empty folder beside `target`, named so that `remove_scratch` knows it as ours."""
    prefix = f".sae-lens-bipolar-{_short(target)}-"
    return Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=target.parent))


def remove_scratch(directory: str | Path) -> None:
    """Remove what killed writers left below `directory`; nobody else may be writing there.

    Only folders that bear the name `new_scratch` gives are removed, and no link is followed: what
    ends in `.tmp` and is the user's stays.
    """
    for folder, names, _ in os.walk(directory, followlinks=False):
        for name in [name for name in names if _SCRATCH.fullmatch(name)]:
            remove_tree(Path(folder, name))
            names.remove(name)


def remove_scratch_of(target: Path) -> None:
    """Remove what killed writers of `target` left beside it; nobody else may be writing it."""
    if not target.parent.is_dir():
        return
    for entry in list(target.parent.iterdir()):
        found = _SCRATCH.fullmatch(entry.name)
        if found and found["name"] == _short(target) and entry.is_dir():
            remove_tree(entry)


def _short(target: Path) -> str:
    """The name of `target`, cut: a file system takes 255 bytes, and so many at most."""
    return target.name.encode()[:120].decode(errors="ignore")


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
        if isinstance(error, DiskFullError) or not is_full_disk(error):
            raise
        raise DiskFullError(
            f"no space left while writing below {directory}: what was finished before is whole; "
            "free some space, or raise the quota, and run the same command again"
        ) from error


@contextmanager
def explaining_write_errors(directory: str | Path) -> Iterator[None]:
    """Turn what stops a writer below `directory` into one sentence.

    Raises:
        DiskFullError: on a full disk.
        ConfigError: if the directory is read-only, or a file stands where a directory should.
    """
    with explaining_full_disk(directory):
        try:
            yield
        except OSError as error:
            place = shown_name(error) or directory
            if error.errno in _READ_ONLY:
                raise ConfigError(
                    f"{directory} cannot be written to: {error.strerror} ({place}); change its "
                    "permissions, or give another directory"
                ) from error
            if error.errno in _NOT_A_FOLDER:
                raise ConfigError(
                    f"{directory} cannot be written to: {place} is a file where a directory is "
                    "needed, or the reverse; rename it, or give another directory"
                ) from error
            raise


def shown_name(error: OSError) -> str:
    """The file an OSError names; empty if it names none."""
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that a disk or quota is full."""
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
    """Read a JSON file, within the limits of `fields.load_json`.

    Raises:
        FileNotFoundError: if there is none.
        DataError: if it is torn, too large, nested too deeply or not a regular file; names it.
    """
    return load_json(Path(path))


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
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
