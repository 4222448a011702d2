"""Atomic writes: a file or directory is whole, or what it was before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lens_bipolar.files.atomic import atomic_path, read_json, sha256_of, write_json


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
