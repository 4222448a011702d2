"""The lock of a run directory: one process, named to the others, gone with its holder."""

import json
import os
import signal
from pathlib import Path

import filelock
import pytest

from sae_lens_bipolar.errors import LockError
from sae_lens_bipolar.files.locks import HOLDER, lock_run


def hold_in_child(run_dir: Path) -> int:
    """Fork a child that holds the lock until it is killed; returns its pid once it holds it."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_run(run_dir):
            os.write(told, b"x")
            signal.pause()
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    return child


def test_the_other_process_is_named_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    child = hold_in_child(tmp_path / "run")
    try:
        with pytest.raises(LockError) as caught, lock_run(tmp_path / "run"):
            pass
        message = str(caught.value)
        for words in (f"process {child} on {os.uname().nodename}", "since 20", "give another"):
            assert words in message
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (tmp_path / "run" / HOLDER).exists()  # what the dead process left says nothing
    with lock_run(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / HOLDER).exists()


def test_one_process_takes_it_again_and_holds_it_to_the_end(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        with lock_run(tmp_path / "." / "x" / ".."):
            pass
        child = os.fork()
        if child == 0:  # a fork holds nothing of its parent's
            try:
                with lock_run(tmp_path):
                    os._exit(0)
            except LockError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with lock_run(tmp_path):
        pass


def test_it_is_freed_by_an_exception_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), lock_run(tmp_path):
        raise ValueError("inside")
    os.kill(child := hold_in_child(tmp_path), signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_holder_without_a_readable_name_is_still_respected(tmp_path: Path) -> None:
    child = hold_in_child(tmp_path)
    try:
        (tmp_path / HOLDER).write_text("{")
        with pytest.raises(LockError, match="not written its name"), lock_run(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_without_locks_in_the_file_system_it_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with lock_run(tmp_path):
        assert "without locks" in caplog.text
