"""One process per run directory: a lock that names its holder and ends with it.

The operating system holds the lock, so a process that is killed leaves nothing to clean up; who
holds it stands in a file beside it, for the message alone. Neither file is written through a link.
"""

import errno
import getpass
import json
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import LockError, UnsafePathError, shown
from sae_lens_bipolar.files.atomic import explaining_write_errors
from sae_lens_bipolar.files.fields import load_json
from sae_lens_bipolar.files.names import HOLDER, LOCK
from sae_lens_bipolar.files.paths import kind_of_file, refuse_links, remove_tree
from sae_lens_bipolar.files.redaction import command_line

try:
    import fcntl
except ImportError:  # Windows, where `filelock` knows the calls
    fcntl = None

logger = logging.getLogger(__name__)

__all__ = ["HOLDER", "LOCK", "lock_run", "locked"]

_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)

_held: dict[tuple[int, Path], int] = {}  # (process, directory) -> how often it was taken


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` (made if it does not exist); within one process as often as wanted.

    A lock whose process has ended, killed or not, is free. Where the file system has no locks, a
    warning says so and the block runs without one. Once held, `run_dir` holds no link that leads
    out of it: what the block writes and deletes in it stays inside.

    Raises:
        LockError: if another process holds it; names its pid, host, user, start and command.
        UnsafePathError: naming a link in it that leaves it, or a pipe, socket or device.
        ConfigError: if it is a file, or cannot be written to.
        DiskFullError: if the disk is full.
    """
    run_dir = Path(run_dir).resolve()
    is_new = not run_dir.exists()
    if not is_new and run_dir.is_dir():
        refuse_links(run_dir)
    with explaining_write_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    key = (os.getpid(), run_dir)  # a forked child holds nothing of its parent's
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    with explaining_write_errors(run_dir):
        lock = _take(run_dir / LOCK, wait=False)
    if lock is None:
        raise LockError(
            f"{run_dir} is in use by {_holder(run_dir)}; wait for it, stop it, or give another "
            "directory"
        )
    _held[key] = 1
    try:
        _name_holder(run_dir)
        yield
    finally:
        del _held[key]
        with suppress(OSError):
            (run_dir / HOLDER).unlink()
        if is_new and [path.name for path in run_dir.iterdir()] == [LOCK]:
            remove_tree(run_dir)  # nothing was done: leave no trace
        lock.close()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for the lock file `file` (made if it does not exist, and left) and hold it.

    Where the file system has no locks, a warning says so and the block runs without one.

    Raises:
        UnsafePathError: if `file` is a link or not a regular file.
    """
    lock = _take(file, wait=True)
    if lock is None:  # not reached: it waits
        raise LockError(f"{file} is held by another process")
    try:
        yield
    finally:
        lock.close()


class _Lock:
    """A held lock; closing it frees it. Without a descriptor: there are no locks here."""

    def __init__(self, descriptor: int | None, other: Any = None):
        self.descriptor, self.other = descriptor, other

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
        if self.other is not None:
            self.other.release()


def _take(file: Path, wait: bool) -> _Lock | None:
    """Lock `file`; None if another process has it."""
    _refuse_surprise(file)
    if fcntl is None:
        return _take_elsewhere(file, wait)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o644)
    try:
        _flock(descriptor, wait)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _HELD_ELSEWHERE:
            return None
        logger.warning(
            "%s lies on a file system without locks (%s): start one process only",
            file.parent,
            error.strerror or error,
        )
        return _Lock(None)
    return _Lock(descriptor)


def _flock(descriptor: int, wait: bool) -> None:
    assert fcntl is not None
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _take_elsewhere(file: Path, wait: bool) -> _Lock | None:
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return None
    return _Lock(None, lock)


def _refuse_surprise(file: Path) -> None:
    with suppress(FileNotFoundError):
        mode = file.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise UnsafePathError(
                f"{file} is {kind_of_file(mode)}, not a lock file of this package: nothing was "
                "written to it. Remove it, or give another directory"
            )


def _name_holder(run_dir: Path) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": _user(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shown(command_line(), 2_000),
    }
    with suppress(OSError):  # a full disk must not stop a run that could still be read
        (run_dir / HOLDER).unlink(missing_ok=True)  # a link, or a second name of another file
        with open(run_dir / HOLDER, "x", encoding="utf-8") as file:
            file.write(json.dumps(holder))


def _holder(run_dir: Path) -> str:
    try:
        found = {key: shown(value) for key, value in load_json(run_dir / HOLDER).items()}
        return (
            f"process {found['pid']} on {found['host']} (user {found['user']}, since "
            f"{found['since']}: {found['command']})"
        )
    except (AttributeError, OSError, ValueError, KeyError):  # just starting, or just ending
        return "another process that has not written its name yet"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for the user
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
