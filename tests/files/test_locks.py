"""The lock of a run directory: one process, named to the others, gone with its holder."""

import errno
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from sae_lens_bipolar.errors import ConfigError, LockError, UnsafePathError
from sae_lens_bipolar.files.locks import HOLDER, LOCK, lock_run, locked
from tests.files.decoy import make_decoy, state


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


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO]
)
def test_without_locks_in_the_file_system_it_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_run(tmp_path):
        assert f"without locks ({os.strerror(number)}): start one process only" in caplog.text
    with locked(tmp_path / ".m.lock"):
        pass


@pytest.mark.parametrize("name", [LOCK, HOLDER])
@pytest.mark.parametrize("target", ["authorized_keys", "none", "."])
def test_a_planted_link_is_refused_and_nothing_is_written_through_it(
    tmp_path: Path, name: str, target: str
) -> None:
    decoy = make_decoy(tmp_path / "victim")
    before = state(decoy)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(decoy / target)
    with (
        pytest.raises(UnsafePathError, match=f"{name} is a link that leaves"),
        lock_run(tmp_path / "run"),
    ):
        pass
    assert state(decoy) == before


@pytest.mark.parametrize("name", [LOCK, HOLDER])
def test_a_second_name_of_another_file_is_not_written_to(tmp_path: Path, name: str) -> None:
    decoy = make_decoy(tmp_path / "victim")
    (tmp_path / "run").mkdir()
    os.link(decoy / "authorized_keys", tmp_path / "run" / name)
    with lock_run(tmp_path / "run"):
        pass
    assert (decoy / "authorized_keys").read_text() == "ssh-ed25519 AAAA ada\n"


def test_a_link_inside_the_run_is_no_lock_file_either(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    (tmp_path / LOCK).symlink_to("metrics.jsonl")
    with (
        pytest.raises(UnsafePathError, match="lock is a link, not a lock file"),
        lock_run(tmp_path),
    ):
        pass
    (tmp_path / LOCK).unlink()
    (tmp_path / HOLDER).symlink_to("metrics.jsonl")
    with lock_run(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert (tmp_path / "metrics.jsonl").read_text() == "{}"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [LOCK, HOLDER, "results/summary.json"])
def test_a_pipe_in_the_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnsafePathError, match="is a named pipe"), lock_run(tmp_path):
        pass


@pytest.mark.parametrize("place", ["progress", "report", "results/census", "checkpoints/a"])
def test_a_link_anywhere_in_the_run_is_refused_before_anything_else(
    tmp_path: Path, place: str
) -> None:
    decoy = make_decoy(tmp_path / "victim")
    before = state(decoy)
    (tmp_path / "run" / place).parent.mkdir(parents=True)
    (tmp_path / "run" / place).symlink_to(decoy)
    with pytest.raises(UnsafePathError, match="is a link that leaves"), lock_run(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK).exists()
    assert state(decoy) == before


def test_a_file_in_place_of_the_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(ConfigError, match="is a file where a directory is needed"),
            lock_run(path),
        ):
            pass


@pytest.mark.timeout(20)
@pytest.mark.parametrize("holder", ['{"pid": "\\u001b[2J"}', "[" * 90_000, "[1]", '"x"', "null"])
def test_a_strange_holder_is_told_briefly(tmp_path: Path, holder: str) -> None:
    child = hold_in_child(tmp_path)
    try:
        (tmp_path / HOLDER).write_text(holder)
        with pytest.raises(LockError, match="in use by") as caught, lock_run(tmp_path):
            pass
        assert str(caught.value).isprintable()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_waiting_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            with locked(tmp_path / ".m.lock"):
                with log.open("a") as file:
                    file.write("in\n")
                time.sleep(0.05)
                with log.open("a") as file:
                    file.write("out\n")
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert log.read_text() == "in\nout\n" * 4
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match="is a link"), locked(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()
