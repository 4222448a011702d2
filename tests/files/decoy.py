"""A folder of somebody else: tests compare it before and after, byte by byte and time by time."""

import os
from pathlib import Path


def make_decoy(folder: Path) -> Path:
    """A folder with files, folders and names like those of a run."""
    for name in ("report/index.html", "progress/notes.txt", ".a.tmp/keep", "publish/x", "cache/y"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"mine: {name}\n")
    (folder / "authorized_keys").write_text("ssh-ed25519 AAAA ada\n")
    (folder / "metrics.jsonl").write_text("not yours\n")
    return folder


def state(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything below `folder`: content (or target), time of last change, and links to it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        known = path.lstat()
        content = b"" if path.is_dir() and not path.is_symlink() else _content(path)
        found[str(path.relative_to(folder))] = (content, known.st_mtime_ns, known.st_nlink)
    return found


def _content(path: Path) -> bytes:
    return os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
