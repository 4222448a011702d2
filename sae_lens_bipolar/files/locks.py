"""One process a run directory: a lock that names its holder and ends with it.

The operating system holds the lock (`filelock`), so a process that is killed leaves nothing to
clean up; who holds it stands in a file beside it, for the message alone.
"""

import getpass
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sae_lens_bipolar.errors import LockError
from sae_lens_bipolar.files.redaction import command_line

logger = logging.getLogger(__name__)

LOCK = ".lock"  # what the operating system locks; empty
HOLDER = ".lock.json"  # who holds it

_held: dict[tuple[int, Path], int] = {}  # (process, directory) -> how often it was taken


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` (made if it does not exist); within one process as often as wanted.

    A lock whose process has ended, killed or not, is free. Where the file system has no locks, a
    warning says so and the block runs without one.

    Raises:
        LockError: if another process holds it; names its pid, host, user, start and command.
    """
    run_dir = run_dir.resolve()
    is_new = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    key = (os.getpid(), run_dir)  # a forked child holds nothing of its parent's
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockError(
            f"{run_dir} is in use by {_holder(run_dir)}; wait for it, stop it, or give another "
            "directory"
        ) from None
    except NotImplementedError:
        logger.warning("%s lies on a file system without locks: start one process only", run_dir)
        yield
        return
    _held[key] = 1
    try:
        _name_holder(run_dir)
        yield
    finally:
        del _held[key]
        with suppress(OSError):
            (run_dir / HOLDER).unlink()
        if is_new and [path.name for path in run_dir.iterdir()] == [LOCK]:
            shutil.rmtree(run_dir, ignore_errors=True)  # nothing was done: leave no trace
        lock.release()


def _name_holder(run_dir: Path) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": _user(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command_line(),
    }
    with suppress(OSError):  # a full disk must not stop a run that could still be read
        (run_dir / HOLDER).write_text(json.dumps(holder), encoding="utf-8")


def _holder(run_dir: Path) -> str:
    try:
        found: dict[str, Any] = json.loads((run_dir / HOLDER).read_text(encoding="utf-8"))
        return (
            f"process {found['pid']} on {found['host']} (user {found['user']}, since "
            f"{found['since']}: {found['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):  # just starting, or just ending
        return "another process that has not written its name yet"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for the user
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
