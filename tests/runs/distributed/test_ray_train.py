"""Ray Train starts the ranks, as docs/devices.md has it: the end is that of one process."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lens_bipolar.cli.main import main
from tests.runs.distributed.test_torchrun import ROOT, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_two_workers_of_ray_train_end_as_one_process(
    tmp_path, monkeypatch, tiny_model_dirs, tiny_text
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15, on a machine that is busy otherwise
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    given = tiny_model_dirs["gpt2"], tiny_text
    assert main(command(alone, *given)[2:]) == 0

    words = command(run_dir, *given)[2:]

    def train_one() -> None:  # sent to each worker
        from sae_lens_bipolar.cli.main import main

        assert main(words) == 0

    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ray.init("local", num_cpus=3, include_dashboard=False, runtime_env={"env_vars": variables})
    try:
        TorchTrainer(
            train_one,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=str(tmp_path / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    require_equal_weights(run_dir, alone)


def require_equal_weights(run_dir: Path, other: Path) -> None:
    weights = "checkpoints/abstopk/sae_weights.safetensors"
    here, there = load_file(run_dir / weights), load_file(other / weights)
    assert here.keys() == there.keys()
    for name, tensor in there.items():
        torch.testing.assert_close(here[name], tensor, rtol=1e-5, atol=1e-5)
