"""Every code block of the README that a user would paste, run in order in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_readme_has_blocks_of_known_kinds() -> None:
    assert {name for name, _ in BLOCKS} == {"", "python", "bash"}
    assert len(blocks("python")) >= 3
    installing = re.findall(r"^(\S+) ?(\S*)", "\n".join(blocks("")), re.M)
    assert set(installing) <= {("make", "demo"), ("make", "test"), ("pip", "install")}


def test_shell_blocks_run(folder: Path) -> None:
    for block in blocks("bash"):
        commands = block.replace("\\\n", " ").strip().splitlines()
        for command in commands:
            assert shlex.split(command)[0] == "sae-lens-bipolar"
            done = subprocess.run(
                shlex.split(command),
                cwd=folder,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=500,
            )
            assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    assert (folder / "my_abstopk/checkpoints/abstopk/sae_weights.safetensors").is_file()


def test_python_blocks_run_in_order(folder: Path) -> None:
    script = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Reconstruction(" in done.stdout
    assert (folder / "my_abstopk_split" / "cfg.json").is_file()
