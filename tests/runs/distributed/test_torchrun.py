"""`torchrun ... -m sae_lens_bipolar train`: a rank is killed; one message, and an equal end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lens_bipolar.cli.main import main

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def command(run_dir: Path, model: Path, text: Path) -> list[str]:
    options = {
        "architecture": "abstopk",
        "k": 4,
        "d_in": 32,
        "d_sae": 50,
        "model_name": model,
        "hook_name": "blocks.1.hook_resid_post",
        "dataset_path": text,
        "context_size": 32,
        "training_tokens": 64 * 150,
        "train_batch_size_tokens": 64,
        "store_batch_size_prompts": 5,
        "n_batches_in_buffer": 16,
        "n_checkpoints": 5,
        "n_eval_batches": 1,
        "output_path": run_dir,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["-m", "sae_lens_bipolar", "train", *words]


def torchrun(n: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", *more]


def environment() -> dict[str, str]:
    port = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **port}


def rank_processes(run_dir: Path) -> dict[int, int]:
    """Process ids of the run's ranks, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((v[5:] for v in variables if v.startswith(b"RANK=")), None)
        if rank is not None and str(run_dir).encode() in words:
            found[int(rank)] = int(folder.name)
    return found


def test_a_killed_rank_ends_the_run_in_one_message_and_it_is_taken_up(
    tmp_path, tiny_model_dirs, tiny_text
) -> None:
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    given = tiny_model_dirs["gpt2"], tiny_text
    assert main(command(alone, *given)[2:]) == 0

    restarting = torchrun(2, "--max-restarts=1", "--standalone", *command(run_dir, *given))
    process = subprocess.Popen(restarting, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list(run_dir.glob("progress/*/sealed.json")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(rank_processes(run_dir)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    ours = [line for line in said.splitlines() if line.startswith("sae-lens-bipolar:")]
    assert len(ours) == 1, [line for line in said.splitlines() if "sae-lens-bipolar" in line]
    # The launcher's SIGTERM may come before the broken connection.
    kept = ("the last whole checkpoint is", "the same command goes on from there")
    assert any(words in ours[0] for words in kept)

    here, there = (
        load_file(folder / "checkpoints/abstopk/sae_weights.safetensors")
        for folder in (run_dir, alone)
    )
    for name, tensor in there.items():
        torch.testing.assert_close(here[name], tensor, rtol=1e-5, atol=1e-5)
