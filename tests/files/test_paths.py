"""Paths of a run stay inside it: links out are refused, nothing outside is written or deleted."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_lens_bipolar.errors import DataError, UnsafePathError
from sae_lens_bipolar.files.paths import (
    files_below,
    inside,
    open_regular,
    refuse_links,
    remove,
    remove_tree,
)
from tests.files.decoy import make_decoy, state


@pytest.fixture
def decoy(tmp_path: Path) -> Path:
    return make_decoy(tmp_path / "victim")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run" / "results" / "census").mkdir(parents=True)
    (tmp_path / "run" / "results" / "census" / "a.json").write_text("{}")
    return tmp_path / "run"


def test_a_path_inside_is_itself_and_a_link_inside_is_followed(root: Path) -> None:
    (root / "inner").symlink_to("results")
    assert inside(root, "results/census/a.json") == root / "results/census/a.json"
    assert inside(root, "inner/census/a.json").read_text() == "{}"
    assert inside(root, "not/yet/there") == root / "not/yet/there"


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(root)
    assert inside(tmp_path / "runs", "results/census/a.json").read_text() == "{}"
    refuse_links(tmp_path / "runs")


@pytest.mark.parametrize("place", ["progress", "results/x.csv", "results/census/deep"])
@pytest.mark.parametrize(
    "target", ["{decoy}", "{decoy}/authorized_keys", "{decoy}/none", "/", ".."]
)
def test_a_link_that_leaves_is_refused_by_name(
    root: Path, decoy: Path, place: str, target: str
) -> None:
    before = state(decoy)
    up = "../" * place.count("/") + ".." if target == ".." else target.format(decoy=decoy)
    (root / place).symlink_to(up)
    for use in (inside, remove):
        with pytest.raises(UnsafePathError, match=f"{place.rsplit('/')[-1]} is a link that leaves"):
            use(root, f"{place}/notes.txt")
    with pytest.raises(UnsafePathError, match="is a link that leaves"):
        refuse_links(root)
    with pytest.raises(UnsafePathError, match="is a link that leaves"):
        files_below(root)
    assert (root / place).is_symlink()
    assert state(decoy) == before


def test_a_chain_of_links_and_a_folder_behind_one_are_refused(root: Path, decoy: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to(decoy)
    for name in ("a", "a/authorized_keys", "b/none"):
        with pytest.raises(UnsafePathError, match="leaves"):
            inside(root, name)


@pytest.mark.parametrize("name", ["../victim", "results/../../victim", "/etc/passwd", "a\0b"])
def test_names_that_climb_out_are_refused(root: Path, name: str) -> None:
    with pytest.raises(UnsafePathError):
        inside(root, name)


def test_a_circle_of_links_ends(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises((UnsafePathError, FileNotFoundError)):
        open_regular(inside(root, "a/c"))
    with pytest.raises(UnsafePathError):
        remove(root, "a")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket takes about a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.timeout(20)  # a pipe without a writer is waited for, for ever
@pytest.mark.parametrize(
    ("make", "kind"), [(pipe, "a named pipe"), (unix_socket, "a socket"), (Path.mkdir, "a folder")]
)
def test_only_regular_files_are_opened(root: Path, make: Callable[[Path], None], kind: str) -> None:
    make(root / "results" / "summary.json")
    with pytest.raises(DataError, match=f"summary.json is {kind}: only regular files"):
        open_regular(root / "results" / "summary.json")
    if kind != "a folder":
        for check in (refuse_links, files_below):
            with pytest.raises(UnsafePathError, match=kind):
                check(root)


def test_a_file_in_the_place_of_a_folder_is_named(root: Path) -> None:
    (root / "file").write_text("x")
    with pytest.raises(DataError, match=r"file/census\.json is not there: a part of its path"):
        open_regular(root / "file" / "census.json")


@pytest.mark.timeout(20)
def test_a_device_is_not_read() -> None:
    with pytest.raises(DataError, match="a device"):
        open_regular("/dev/zero")


def test_a_file_beyond_the_limit_is_not_opened(root: Path) -> None:
    with (root / "big").open("wb") as file:
        file.truncate(1 << 40)  # a hole: no bytes on the disk
    with pytest.raises(DataError, match=r"big has 1,048,576\.0 MiB; at most 1 MiB"):
        open_regular(root / "big", 1 << 20)


def test_files_below_enters_no_folder_through_a_link(root: Path) -> None:
    (root / "again").symlink_to("results")
    (root / "same.json").symlink_to("results/census/a.json")
    assert files_below(root) == [root / "results/census/a.json", root / "same.json"]
    assert files_below(root, "none") == []


def test_removing_takes_what_is_named_and_leaves_what_links_lead_to(
    root: Path, decoy: Path
) -> None:
    before = state(decoy)
    (root / "progress" / "5").mkdir(parents=True)
    (root / "progress" / "5" / "out").symlink_to(decoy)
    (root / "progress" / "file").symlink_to(decoy / "authorized_keys")
    remove(root, "progress")
    remove(root, "none")
    assert sorted(path.name for path in root.iterdir()) == ["results"]
    remove(root, "results/census/a.json")
    assert list((root / "results/census").iterdir()) == []
    (root / "link").symlink_to(decoy)
    remove_tree(root / "link")
    with pytest.raises(UnsafePathError, match="link"):
        remove(root, "link")
    with pytest.raises(UnsafePathError, match="itself is not removed"):
        remove(root, ".")
    assert state(decoy) == before
