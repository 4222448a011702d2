"""Paths that stay inside a run: no link leads out, only regular files are read, nothing is deleted
through a link.

A run directory may come from a stranger (an archive, a repository), so its content is not trusted:
a link `progress -> ../victim` must neither be deleted through nor written through. The root itself
is the user's choice and may be a link. What happens to a directory while it is used is not guarded
against: `locks.lock_run` keeps other processes of this package out, and checks the links once.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sae_lens_bipolar.errors import DataError, UnsafePathError

MEBIBYTE = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a link"),
)


def inside(root: str | Path, name: str | Path) -> Path:
    """`root / name`, which need not exist, if it lies below `root` after following every link.

    Links that stay inside are followed, for reading. The file itself is checked by `open_regular`.

    Raises:
        UnsafePathError: if `name` is absolute or climbs out with `..`, or if a link leads out;
            names the link.
    """
    root, name = Path(root), Path(name)
    if name.is_absolute() or ".." in name.parts or "\0" in str(name):
        raise UnsafePathError(f"{name} is not a path below {root}: it was left alone")
    try:
        home = root.resolve()
        path = root
        for part in name.parts:
            path = path / part
            if path.is_symlink():
                _require_inner_link(path, home)
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long
        raise UnsafePathError(f"{root / name} cannot be followed: {error}") from error
    return root / name


def _require_inner_link(link: Path, home: Path) -> None:
    target = link.resolve()
    if not target.is_relative_to(home):
        raise UnsafePathError(
            f"{link} is a link that leaves {home} (it leads to {target}): it was not followed, and "
            "nothing was read, written or deleted there. Put a copy of the file in its place, or "
            "remove the link"
        )


def refuse_links(root: str | Path) -> None:
    """Check everything below `root` at once, before a command writes or deletes there.

    Afterwards ordinary reading, writing and deleting below `root` stays inside.

    Raises:
        UnsafePathError: naming the first link that leaves `root`, or the first pipe, socket or
            device.
    """
    home = Path(root).resolve()
    for path, mode in _walk(Path(root)):
        if stat.S_ISLNK(mode):
            try:
                _require_inner_link(path, home)
            except (OSError, RuntimeError) as error:
                raise UnsafePathError(f"{path} is a link in a circle: {error}") from error
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UnsafePathError(
                f"{path} is {kind_of_file(mode)}, which no run holds: remove it, or give another "
                "directory"
            )


def files_below(root: str | Path, folder: str | Path = "") -> list[Path]:
    """Every regular file below `root/folder`, sorted; empty if there is no such folder.

    Folders that are links are not entered. Scratch of killed writers is left out.

    Raises:
        UnsafePathError: naming a link that leaves `root`, or a pipe, socket or device.
    """
    start, home = inside(root, folder), Path(root).resolve()
    found = []
    for path, mode in _walk(start):
        if stat.S_ISLNK(mode):
            _require_inner_link(path, home)
            mode = path.stat().st_mode if path.exists() else mode
            if stat.S_ISDIR(mode):
                continue
        if stat.S_ISREG(mode):
            found.append(path)
        elif not stat.S_ISDIR(mode):
            raise UnsafePathError(f"{path} is {kind_of_file(mode)}: only regular files are read")
    return sorted(found)


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Everything below `folder` with its mode (`lstat`); links are yielded, never entered."""
    pending = [folder]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            yield Path(entry.path), mode
            if stat.S_ISDIR(mode):
                pending.append(Path(entry.path))


def open_regular(file: str | Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a file for reading, without waiting for a pipe's writer or reading from a device.

    Raises:
        FileNotFoundError: if there is none.
        DataError: if it is not a regular file, or larger than `max_bytes`; names it.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise DataError(f"{file} is not there: a part of its path is not a folder") from error
        if error.errno in (errno.ENXIO, errno.ENODEV):  # sockets; devices that are not there
            kind = kind_of_file(os.stat(file).st_mode)
            raise DataError(f"{file} is {kind}: only regular files are read") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{file} is {kind_of_file(found.st_mode)}: only regular files are read")
        if max_bytes is not None and found.st_size > max_bytes:
            raise DataError(
                f"{file} has {found.st_size / MEBIBYTE:,.1f} MiB; at most "
                f"{max_bytes / MEBIBYTE:g} MiB are read of such a file"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def remove(root: str | Path, name: str | Path) -> None:
    """Delete the file or folder `root/name`, if it is there; nothing outside it, ever.

    A link inside the folder is removed as a link, and what it leads to stays.

    Raises:
        UnsafePathError: if `root/name`, or a folder on the way to it, is a link.
    """
    root, name = Path(root), Path(name)
    path = inside(root, name)
    if not name.parts:
        raise UnsafePathError(f"{root} itself is not removed: name what to remove in it")
    steps = [root.joinpath(*name.parts[: n + 1]) for n in range(len(name.parts))]
    if link := next((step for step in steps if step.is_symlink()), None):
        raise UnsafePathError(
            f"{link} is a link: nothing is deleted through it; remove it yourself"
        )
    remove_tree(path)


def remove_tree(path: Path) -> None:
    """Delete a file, or a folder with all in it, without following a link; errors are ignored.

    A link is left alone. For paths that this process made; for others take `remove`.
    """
    if path.is_symlink():
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # refuses links, and enters none
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY):
            raise


def kind_of_file(mode: int) -> str:
    """What a file of this mode (`stat`) is called."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "not a regular file")
