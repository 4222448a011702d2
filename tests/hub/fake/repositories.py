"""Hub repositories in memory: immutable commits, branches and tags, files as the Hub lists them.

A file is a git blob (ETag: its git SHA-1) or, by the rules of the Hub's default `.gitattributes`, a
large file (ETag: its SHA-256; kept in the storage, shared by all repositories).
"""

import fnmatch
import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Literal

RepoType = Literal["model", "dataset", "space"]
LARGE_SUFFIXES = ("safetensors", "parquet", "bin", "arrow", "npz", "gz", "zip", "png", "gguf")
LARGE_SIZE = 10_000_000  # bytes; a text file above this becomes a large file too


class HubError(Exception):
    """An answer other than success: HTTP status, the Hub's message, its error code, extra JSON."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


def git_hash(kind: str, data: bytes) -> str:
    """The SHA-1 by which git names an object of `kind` ("blob", "commit")."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One version of one file."""

    data: bytes
    large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself stores for a large file."""
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def oid(self) -> str:
        return git_hash("blob", self.pointer if self.large else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def listing(self, path: str) -> dict[str, Any]:
        """The entry of this file in the Hub's `tree` and `paths-info` answers."""
        entry = {"type": "file", "oid": self.oid, "size": len(self.data), "path": path}
        if self.large:
            entry["lfs"] = {
                "oid": self.sha256,
                "size": len(self.data),
                "pointerSize": len(self.pointer),
            }
        return entry


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """A model, data set or space: commits by oid, and the names that point at them."""

    repo_id: str
    repo_type: RepoType = "model"
    private: bool = False
    gated: bool = False  # its files need a token on `granted`; its listings stay public
    granted: set[str] = field(default_factory=set)  # user names
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit oid
    tags: dict[str, str] = field(default_factory=dict)  # name -> commit oid

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        if not self.commits:
            self.commit({}, title="initial commit", author="hub")

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    def at(self, revision: str = "main") -> Commit:
        """The commit a branch, tag, full oid or short oid names; raises the Hub's own 404."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        for known, commit in self.commits.items():
            if known == oid or (len(oid) >= 7 and known.startswith(oid)):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(
        self,
        add: Mapping[str, Blob],
        *,
        delete: Iterable[str] = (),
        title: str = "commit",
        message: str = "",
        branch: str = "main",
        parent: str | None = None,
        author: str = "hub",
    ) -> Commit:
        """Put a commit on a branch: all of `add` and `delete` together, or an error and nothing.

        A path in `delete` that ends in "/" is a folder. `parent`, when given, must be the branch's
        tip, else the Hub's 412.
        """
        with self.lock:
            tip = self.branches.get(branch)
            if tip is None and self.commits:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if parent is not None and tip is not None and not tip.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(self.commits[tip].files) if tip else {}
            for path in delete:
                gone = [p for p in files if p == path or (path[-1:] == "/" and p.startswith(path))]
                if not gone:
                    raise HubError(
                        404, f"A file with this name doesn't exist: {path}", "EntryNotFound"
                    )
                for p in gone:
                    del files[p]
            files.update(add)
            # Numbered in time, so that oids do not depend on the clock.
            stamp = datetime.fromtimestamp(1_700_000_000 + len(self.commits), timezone.utc)
            date = stamp.strftime("%Y-%m-%dT%H:%M:%S.000Z")
            tree = "\n".join(f"{path} {blob.etag}" for path, blob in sorted(files.items()))
            text = f"{self.repo_id} {self.repo_type} {tip} {date}\n{title}\n{message}\n{tree}"
            oid = git_hash("commit", text.encode())
            self.commits[oid] = Commit(oid, tip, title, message, author, date, files)
            self.branches[branch] = oid
            return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits from `revision` back to the first, newest first."""
        found: list[Commit] = []
        oid: str | None = self.at(revision).oid
        while oid is not None:
            found.append(self.commits[oid])
            oid = self.commits[oid].parent
        return found

    def tree(self, revision: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below `folder` ("" for all), sorted by path, as the Hub lists them."""
        files = self.at(revision).files
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in sorted(files) if path.startswith(prefix)]
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for path in inside:
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    oid = hashlib.sha1(name.encode()).hexdigest()
                    entries[name] = {"type": "directory", "oid": oid, "size": 0, "path": name}
            if recursive or len(parts) == 1:
                entries[path] = files[path].listing(path)
        return [entries[path] for path in sorted(entries)]


def is_large(path: str, size: int, sample: bytes, attributes: bytes = b"") -> bool:
    """Whether the Hub stores this file as a large one: by `.gitattributes`, suffix, size, NULs."""
    for line in attributes.decode(errors="replace").splitlines():
        pattern, _, rules = line.partition(" ")
        if "filter=lfs" in rules and fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern):
            return True
    return path.rsplit(".", 1)[-1] in LARGE_SUFFIXES or size > LARGE_SIZE or b"\0" in sample


def make_blob(path: str, data: bytes, attributes: bytes = b"") -> Blob:
    """The blob the Hub would make of a file's bytes."""
    return Blob(data, bool(data) and is_large(path, len(data), data[:512], attributes))
