"""Whole runs on ranks: the same batches, files and ends as in one process, and how they end."""

import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.batch_abstopk import MatryoshkaBatchAbsTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.errors import BipolarError, ConfigError, RankError, TrainingError
from sae_lens_bipolar.runs.checkpoints import is_whole, load_sae
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.distributed.launch import joined
from sae_lens_bipolar.runs.runner import RunDirectoryRunner
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep
from tests.runs.distributed.gloo import launched

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
SAES = {
    "abstopk": SweepSAE(RESID, partial(AbsTopKTrainingSAEConfig, d_sae=50, k=4)),
    "gated": SweepSAE(
        RESID,
        partial(
            SignAwareGatedTrainingSAEConfig,
            d_sae=50,
            l0_target=4,
            normalize_activations="expected_average_only_in",
        ),
    ),
    "nested": SweepSAE(MLP, partial(MatryoshkaBatchAbsTopKTrainingSAEConfig, d_sae=50, k=4)),
}
STEPS = 25


@pytest.fixture(scope="module")
def config(tiny_model_dirs, tiny_text) -> SweepConfig:
    return SweepConfig(
        model=str(tiny_model_dirs["gpt2"]),
        corpus=str(tiny_text),
        context_size=32,
        training_tokens=64 * STEPS,
        train_batch_size_tokens=64,
        lr_warm_up_steps=2,
        lr_decay_steps=5,
        n_checkpoints=2,
        eval_sequences=10,
        loss_sequences=6,
        n_batches_in_buffer=16,
        store_batch_size_prompts=5,  # shared out as 3 and 2, or 2, 2 and 1
        dead_feature_window=4,
        seed=3,
        options={"n_batches_for_norm_estimate": 2},
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory, config) -> Path:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    run_sweep(config, SAES, run_dir)
    return run_dir


def weights(run_dir: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run_dir / f"checkpoints/{name}/sae_weights.safetensors")


def metadata(run_dir: Path, name: str) -> dict[str, Any]:
    return json.loads((run_dir / f"checkpoints/{name}/cfg.json").read_text())["metadata"]


def require_equal_ends(run_dir: Path, alone: Path) -> None:
    """The same files, weights and logged losses, to rounding."""
    for name in SAES:
        here, there = weights(run_dir, name), weights(alone, name)
        assert here.keys() == there.keys()
        for key, tensor in there.items():
            torch.testing.assert_close(here[key], tensor, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
        folder = run_dir / "checkpoints" / name
        assert is_whole(folder)
        load_sae(folder)
        said, expected = (metadata(d, name) for d in (run_dir, alone))
        assert said["num_dead_features"] == expected["num_dead_features"]
        assert said["l0"] == pytest.approx(expected["l0"], rel=1e-5)
    rows, expected = (read_metrics(d / "metrics.jsonl") for d in (run_dir, alone))
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.pop("sae") == other.pop("sae")
        assert row.pop("seconds") > 0
        assert other.pop("seconds") > 0
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    files = [{str(p.relative_to(d)) for p in d.rglob("*") if p.is_file()} for d in (run_dir, alone)]
    assert files[0] == files[1]


def stopped_after(step: int, config: SweepConfig, run_dir: Path) -> str:
    """A run that every rank leaves after a step."""
    logs = RunDirectoryRunner._row

    def leaves(self: Any, name: str, trainer: Any, output: Any) -> dict[str, Any]:
        if trainer.n_training_steps + 1 > step:
            raise TrainingError("stopped")
        return logs(self, name, trainer, output)

    RunDirectoryRunner._row = leaves  # type: ignore[method-assign]
    return outcome(config, run_dir)


def outcome(config: SweepConfig, run_dir: Path) -> str:
    """What ends a run: "done" with the rows there are, or the error and its message."""
    try:
        return f"done {len(run_sweep(config, SAES, run_dir))}"
    except (BipolarError, SystemExit) as end:
        return f"{type(end).__name__} {end}"


def with_another_lr(config: SweepConfig, run_dir: Path) -> str:
    """One rank is started with another configuration."""
    lr = 2e-3 if os.environ["RANK"] == "1" else config.lr
    return outcome(replace(config, lr=lr), run_dir)


def test_three_ranks_leave_the_run_directory_of_one_process(tmp_path, config, alone) -> None:
    run_dir = tmp_path / "run"
    ends = launched(3, outcome, tmp_path / "ranks", config, run_dir)
    assert ends == ["done 3", "done 0", "done 0"]
    require_equal_ends(run_dir, alone)
    # What is done already is not done again, and the other ranks know.
    assert launched(2, outcome, tmp_path / "again", config, run_dir) == ["done 3", "done 0"]


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 3])
def test_saved_on_two_ranks_a_run_goes_on_with_another_number(
    tmp_path, config, alone, then
) -> None:
    run_dir = tmp_path / "run"
    ends = launched(2, partial(stopped_after, 19), tmp_path / "ranks", config, run_dir)
    assert "TrainingError stopped" in ends
    assert [path.name for path in (run_dir / "progress").iterdir()] == ["1088"]
    if then == 1:
        run_sweep(config, SAES, run_dir)
    else:
        launched(then, outcome, tmp_path / "more", config, run_dir)
    require_equal_ends(run_dir, alone)


def test_ranks_that_differ_are_refused_before_anything_starts(tmp_path, config) -> None:
    ends = launched(2, with_another_lr, tmp_path / "ranks", config, tmp_path / "run")
    said = next(end for end in ends if not end.startswith("SystemExit"))
    assert said.startswith(RankError.__name__)
    assert "ranks 0 and 1 do not agree (config.lr: 0.001 and 0.002)" in said
    assert not (tmp_path / "run").exists()


def meets(port: int, run_dir: Path) -> list[float]:
    """A rank whose launcher keeps the store, as torchrun's agent does."""
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with joined("cpu", {}, run_dir) as ranks:
        return ranks.total_of(1, ranks.rank)


def test_ranks_that_are_started_again_find_each_other_in_the_store_of_the_first(tmp_path) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for attempt in ("first", "second"):
        found = launched(2, meets, tmp_path / attempt, agent.port, tmp_path)
        assert found == [[2, 1], [2, 1]]


def refused_in_turn(run_dir: Path) -> str:
    try:
        with joined("cpu", {}, run_dir) as ranks:
            time.sleep(2.0 * ranks.rank)
            raise ConfigError("all ranks come to this")
    except (ConfigError, SystemExit) as end:
        return type(end).__name__


def test_a_rank_that_is_refused_late_knows_that_it_was_said(tmp_path) -> None:
    """What ranks share ends with the first of them, which waits for the other."""
    ends = launched(2, refused_in_turn, tmp_path / "ranks", tmp_path / "run")
    assert ends == ["ConfigError", "SystemExit"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"options": {"autocast": True}}, "autocast=True"),
        ({"options": {"prefetch_llm_batches": 2}}, "prefetch_llm_batches=2"),
        ({"sae_devices": ["cpu"]}, r"sae_devices=['cpu']"),
    ],
)
def test_what_several_ranks_do_not_have_is_refused_by_name(tmp_path, config, more, said) -> None:
    ends = launched(2, outcome, tmp_path / "ranks", replace(config, **more), tmp_path / "run")
    (message,) = (end for end in ends if not end.startswith("SystemExit"))
    assert message.startswith(f"ConfigError {said} is not allowed on several ranks")
