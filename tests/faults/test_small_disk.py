"""Disks that fill up under each command, a kilobyte at a time: one sentence, and it can go on.

The disks are real, of blocks of 1 KiB, in a file that is mounted (as root, on Linux). The sample
limits the size of a file instead, which needs no rights and stops the same writes.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.commands import (
    Command,
    commands,
    content,
    end,
    load_all,
    progress_bars_of_one_process,
    start,
)

KIBIBYTE = 1024
STEPS = 40  # of a KiB, below what is just enough
DISK = 48 * KIBIBYTE  # KiB
NAMES = ("train", "bench", "report", "publish", "explore", "demo")


@pytest.fixture(scope="module")
def known(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dirs: dict[str, Path], tiny_text: Path
) -> dict[str, Command]:
    load_all()
    return commands(tmp_path_factory.mktemp("commands"), tiny_model_dirs["gpt2"], tiny_text)


@pytest.fixture(autouse=True)
def own_bars() -> Iterator[None]:
    with progress_bars_of_one_process():
        yield


class Disk:
    """A small file system, of which a file of ballast leaves as much free as is asked for."""

    def __init__(self, folder: Path):
        self.folder, self._ballast = folder, folder / "ballast"

    def leave(self, kibibytes: int) -> None:
        self._ballast.unlink(missing_ok=True)
        block = b"\0" * KIBIBYTE
        with open(self._ballast, "wb", buffering=0) as file:
            while (spare := self._free() - kibibytes) > 0:
                for _ in range(max(1, spare - spare // 64)):  # the file's own index grows with it
                    file.write(block)
        os.sync()

    def all(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def _free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize // KIBIBYTE


@contextmanager
def small_disk(root: Path) -> Iterator[Disk]:
    image, folder = root / "image", root / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(DISK * KIBIBYTE)
    make = ["mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-m", "0", "-N", "4000", str(image)]
    try:
        subprocess.run(make, check=True, capture_output=True)
        mount = ["mount", "-o", "loop", str(image), str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full(code: int, log: Path) -> bool:
    """Whether the command ended as on a full disk; asserts that it ended in a clean way."""
    said = log.read_text()
    assert "Traceback" not in said, said[-3000:]
    assert code in (0, 2, 3), said[-3000:]
    if code == 0:
        return False
    assert "no space left while writing below" in said, said[-2000:]
    return True


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_every_kilobyte_of_the_last_forty(
    name: str, known: dict[str, Command], tmp_path: Path
) -> None:
    command, log = known[name], tmp_path / "log"
    with small_disk(tmp_path) as disk:
        run = disk.folder / "run"

        def ends_full(kibibytes: int) -> bool:
            shutil.rmtree(run, ignore_errors=True)
            disk.all()
            command.prepare(run)
            disk.leave(kibibytes)
            return full(end(start(command.words(run), log)), log)

        assert not ends_full(DISK // 2), log.read_text()[-2000:]
        expected = content(run, command.made)
        low, high = 0, DISK // 2  # full at `low`, enough at `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if ends_full(middle) else (low, middle)
        ended, checked = 0, range(max(0, low - STEPS + 1), low + 1)
        for kibibytes in checked:
            ended += ends_full(kibibytes)
            disk.all()
            assert end(start(command.words(run), log)) == 0, log.read_text()[-3000:]
            assert content(run, command.made) == expected
        assert ended >= len(checked) // 2, "the disk was full"
        print(f"{name}: enough with {high} KiB; {ended} of {len(checked)} steps below ended full")


def limited_to(n_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.parametrize(
    "name",
    [
        *("train", "report", "publish"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("bench", "explore", "demo")),
    ],
)
def test_a_sample(name: str, known: dict[str, Command], tmp_path: Path) -> None:
    command, log, run = known[name], tmp_path / "log", tmp_path / "run"
    command.prepare(run)
    assert end(start(command.words(run), log)) == 0, log.read_text()[-3000:]
    made = [file.stat().st_size for file in run.rglob("*") if file.is_file()]
    expected, ended = content(run, command.made), 0
    for n_bytes in (max(made) - 1, sorted(made)[len(made) // 2], 10):
        shutil.rmtree(run)
        command.prepare(run)
        # What Python writes to the log is limited as well: a pipe is not.
        ended += full_when_limited(command, run, n_bytes, log)
        assert end(start(command.words(run), log)) == 0, log.read_text()[-3000:]
        assert content(run, command.made) == expected
    assert ended >= 2


def full_when_limited(command: Command, run: Path, n_bytes: int, log: Path) -> bool:
    reader, writer = os.pipe()
    child = start(command.words(run), Path(f"/dev/fd/{writer}"), limited_to(n_bytes))
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        log.write_bytes(said.read())
    return full(end(child), log)
