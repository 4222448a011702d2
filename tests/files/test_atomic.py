"""Atomic writes: a file or directory is whole, or what it was before."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lens_bipolar.errors import ConfigError, DiskFullError
from sae_lens_bipolar.files.atomic import (
    atomic_path,
    explaining_write_errors,
    new_scratch,
    read_json,
    remove_scratch,
    remove_scratch_of,
    sha256_of,
    write_json,
    write_text,
)
from tests.files.decoy import make_decoy, state


def test_a_file_and_a_directory_appear_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"x": 1})
    assert read_json(tmp_path / "deep" / "a.json") == {"x": 1}
    for content in ("first", "second"):
        with atomic_path(tmp_path / "folder") as scratch:
            scratch.mkdir()
            (scratch / "file").write_text(content)
            assert not (tmp_path / "folder" / "file").exists() or content == "second"
        assert (tmp_path / "folder" / "file").read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "folder"]


def test_an_exception_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as scratch:
            scratch.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from sae_lens_bipolar.files.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as scratch:\n"
        "    scratch.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(target)], env=dict(os.environ), timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == known


def test_a_link_in_place_of_the_target_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    decoy = make_decoy(tmp_path / "victim")
    before = state(decoy)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").symlink_to(decoy / "authorized_keys")
    write_text(tmp_path / "run" / "config.yaml", "seed: 0\n")
    (tmp_path / "run" / "report").symlink_to(decoy)
    with atomic_path(tmp_path / "run" / "report") as scratch:
        scratch.mkdir()
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 0\n"
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_symlink()]
    assert state(decoy) == before


def test_only_our_scratch_is_removed_and_never_through_a_link(tmp_path: Path) -> None:
    decoy = make_decoy(tmp_path / "victim")
    ours = new_scratch(decoy / "report" / "index.html")
    (ours / "half").write_text("x")
    run = tmp_path / "run"
    (run / "results").mkdir(parents=True)
    theirs = [
        ".a.tmp",
        ".cache.tmp",
        ".sae-lens-bipolar.tmp",
        "x-abcdefgh.tmp",
        ".a.abcdefgh.tmp",
    ]
    for name in theirs:
        (run / name).mkdir()
    (run / ".sae-lens-bipolar-file-abcdefgh.tmp").write_text("not a folder")
    (run / "results" / "out").symlink_to(decoy)
    (run / ".sae-lens-bipolar-out-abcdefgh.tmp").symlink_to(decoy)
    half = new_scratch(run / "results" / "summary.json")
    (half / "deep").mkdir()
    (half / "deep" / "out").symlink_to(decoy)
    before = state(decoy)
    remove_scratch(run)
    assert not half.exists()
    assert state(decoy) == before
    for name in theirs:
        assert (run / name).is_dir()


def test_scratch_of_one_target_leaves_that_of_others(tmp_path: Path) -> None:
    mine, other = new_scratch(tmp_path / "m"), new_scratch(tmp_path / "m-m")
    remove_scratch_of(tmp_path / "m")
    remove_scratch_of(tmp_path / "none" / "m")
    assert (mine.exists(), other.exists()) == (False, True)


def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127):
        write_text(tmp_path / name, "a")
        assert (tmp_path / name).read_text() == "a"


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.EROFS, ConfigError, "Read-only file system .*change its permissions"),
        (errno.EACCES, ConfigError, "Permission denied"),
        (errno.ENOTDIR, ConfigError, "is a file where a directory is needed"),
        (errno.ENOSPC, DiskFullError, "no space left while writing below"),
        (errno.EDQUOT, DiskFullError, "no space left while writing below"),
        (errno.EIO, OSError, "Input/output error"),
    ],
)
def test_what_stops_a_writer_is_one_sentence(
    tmp_path: Path, number: int, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught, explaining_write_errors(tmp_path / "run"):
        raise OSError(number, os.strerror(number), str(tmp_path / "run" / "x"))
    assert str(tmp_path / "run") in str(caught.value)
