"""Caches of a benchmark: activations and probes that its runs share, read only if ours.

Numbers depend on caches, and SAEBench reads one without asking where it comes from; an output
directory may come from a stranger. So each cache is sealed: its file `seal` holds a digest of the
cache's name and of every file in it (BLAKE2b, 32 bytes), keyed with 32 random bytes that lie in
this user's cache directory and nowhere else. Nobody without the key can make a valid seal. A cache
without a valid seal is removed and made again. `host.data_only` protects in addition: the files
that are read hold numbers and no code.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_lens_bipolar.files.atomic import user_cache_dir
from sae_lens_bipolar.files.paths import open_regular, remove
from sae_lens_bipolar.saebench.suites.registry import SUITES

logger = logging.getLogger(__name__)
CACHES, SEAL = "cache", "seal"
_KEY_FILE, _KEY_BYTES = "bench.key", 32
_BLOCK = 1 << 20


def path_of(output: Path, suite: str, key: Mapping[str, Any]) -> Path:
    """Where the cache for `key` lies."""
    text = json.dumps(key, sort_keys=True, default=str)
    return output / CACHES / f"{suite}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def is_usable(output: Path, cache: Path) -> bool:
    """Whether `cache` is there, sealed by this user and unchanged; if it is not, it is removed.

    Raises:
        UnsafePathError: if it, or the folder of caches, is a link.
    """
    if not (cache.is_dir() or cache.is_symlink()):
        return False
    signature = _signature(cache)
    if signature is not None and _is_sealed(cache, signature):
        return True
    logger.warning("%s was not made by this user, or has changed: it is made anew", cache)
    remove(output, cache.relative_to(output))
    return False


def keep(built: Path, cache: Path) -> None:
    """Seal the whole cache `built` and make it available to later runs, in one rename."""
    signature = _signature(built)
    if signature is None or cache.exists():
        return
    seal = _digest(built, cache.name, signature)
    (built / SEAL).write_text(seal + "\n", encoding="ascii")
    cache.parent.mkdir(parents=True, exist_ok=True)
    os.replace(built, cache)


def remove_all(output: Path) -> None:
    """Remove every cache; anything else in that folder stays."""
    ours = re.compile(rf"({'|'.join(SUITES)})-[0-9a-f]{{16}}")
    folder = output / CACHES
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if ours.fullmatch(name):
            remove(output, Path(CACHES, name))
    with suppress(OSError):  # not there, or not empty
        folder.rmdir()


_Signature = tuple[tuple[Any, ...], ...]


def _signature(cache: Path) -> _Signature | None:
    """Name, size, time and place of every file; None if there is anything but files and folders."""
    found: list[tuple[Any, ...]] = []
    pending = [cache]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:  # not a folder, or not readable
            return None
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                pending.append(Path(entry.path))
            elif stat.S_ISREG(info.st_mode):
                name = Path(entry.path).relative_to(cache).as_posix()
                found.append((name, info.st_size, info.st_mtime_ns, info.st_ino))
            else:
                return None
    return tuple(sorted(found))


@lru_cache(maxsize=256)  # a command reads a cache once per SAE and protocol, and checks it once
def _is_sealed(cache: Path, signature: _Signature) -> bool:
    try:
        with open_regular(cache / SEAL, max_bytes=1024) as file:
            claimed = file.read().strip()
    except (OSError, ValueError):
        return False
    found = _digest(cache, cache.name, signature)
    return hmac.compare_digest(claimed, found.encode())


def _digest(cache: Path, name: str, signature: _Signature) -> str:
    files = [file for file, *_ in signature if file != SEAL]
    digest = hashlib.blake2b(key=_key(), digest_size=32)
    for part in (name, *files):
        text = part.encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    for file in files:
        with open_regular(cache / file) as content:
            digest.update(os.fstat(content.fileno()).st_size.to_bytes(8, "big"))
            while block := content.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _key() -> bytes:
    """This user's key, made when it is first asked for; readable by the user alone."""
    return _key_in(user_cache_dir())


@lru_cache(maxsize=8)
def _key_in(folder: Path) -> bytes:
    file = folder / _KEY_FILE
    made = folder / f".{_KEY_FILE}.{secrets.token_hex(8)}"
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as new:
                new.write(secrets.token_bytes(_KEY_BYTES))
            _move_unless_there(made, file)
        found = file.read_bytes()
    except OSError as error:
        logger.warning("%s cannot be kept (%s): later commands make their caches anew", file, error)
        return secrets.token_bytes(_KEY_BYTES)
    finally:
        with suppress(OSError):
            made.unlink()
    if len(found) == _KEY_BYTES:
        return found
    logger.warning("%s is damaged: remove it; until then caches are made anew", file)
    return secrets.token_bytes(_KEY_BYTES)


def _move_unless_there(made: Path, file: Path) -> None:
    try:
        os.link(made, file)
    except FileExistsError:  # another process was faster
        pass
    except OSError:  # a file system without such links
        os.replace(made, file)
