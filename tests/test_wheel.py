"""The wheel in a clean environment: it imports, and the demo works from an empty folder."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_wheel_installs_and_runs_without_the_repository(
    tmp_path: Path, tiny_model_dirs: dict[str, Path], tiny_text: Path
) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("sae_lens_bipolar-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    constraints = ROOT / "constraints.txt"
    run(
        *(binaries / "python", "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}[demo]"),
        cwd=tmp_path,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    listed = run(binaries / "python", "-m", "pip", "list", cwd=empty)
    assert "sae-bench" not in listed
    code = "import sae_lens_bipolar as b; print(b.__file__)"
    assert str(tmp_path / "venv") in run(binaries / "python", "-W", "ignore", "-c", code, cwd=empty)
    options = [
        *("--model", tiny_model_dirs["gpt2"], "--corpus", tiny_text, "--d-sae", "96", "--l0", "6"),
        *("--hook-name", "blocks.1.hook_resid_post", "--context-size", "32"),
        *("--training-tokens", "3200", "--train-batch-size-tokens", "64"),
        *("--lr-warm-up-steps", "2", "--lr-decay-steps", "5"),
        *("--eval-sequences", "24", "--loss-sequences", "24", "--latents-shown", "3"),
    ]
    printed = run(binaries / "sae-lens-bipolar", "demo", *options, cwd=empty)
    assert "sign_aware_gated" in printed
    assert (empty / "runs/demo/report/index.html").is_file()
    assert (empty / "runs/demo/results/summary.json").is_file()
