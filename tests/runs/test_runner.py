"""Shared training into a run directory: its files, and resuming after SIGKILL at any step."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    AbsTopKTrainingSAEConfig,
    MultiSAETrainingRunnerConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.errors import (
    ActivationError,
    ConfigError,
    DataError,
    ModelError,
    TrainingError,
)
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of
from sae_lens_bipolar.runs import runner
from sae_lens_bipolar.runs.checkpoints import latest_checkpoint
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.runner import RunDirectoryRunner

CONTEXT = 16


def make_config(d_in: int, **options) -> MultiSAETrainingRunnerConfig:
    size = {"d_in": d_in, "d_sae": 48, "normalize_activations": "expected_average_only_in"}
    gated = {**size, "l0_target": 4.0, "threshold_init_l0": 4.0, "b_dec_init": "mean"}
    defaults = {
        "saes": {
            "topk": TopKTrainingSAEConfig(**size, k=4),
            "abstopk": AbsTopKTrainingSAEConfig(**size, k=4),
            "gated": GatedL0TrainingSAEConfig(**gated),
            "sign_aware_gated": SignAwareGatedTrainingSAEConfig(**gated),
        },
        "hook_names": "blocks.0.hook_mlp_out",
        "context_size": CONTEXT,
        "training_tokens": 640,
        "train_batch_size_tokens": 32,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 8,
        "n_batches_for_norm_estimate": 2,
        "exclude_special_tokens": True,
        "lr": 1e-2,
        "lr_warm_up_steps": 2,
        "lr_decay_steps": 5,
        "n_checkpoints": 3,
        "dead_feature_window": 5,
        "logger": LoggingConfig(log_to_wandb=False),
        "dataset_trust_remote_code": False,
        "seed": 7,
    }
    return MultiSAETrainingRunnerConfig(**{**defaults, **options})


def make_runner(run_dir: Path, model_dir: str, text: str, **options) -> RunDirectoryRunner:
    model = load_model(model_dir)
    tokens = split_tokens(load_documents(text), tokenizer_of(model), context_size=CONTEXT, seed=7)
    cfg = make_config(model.cfg.d_model, **options)
    run_dir.mkdir(parents=True, exist_ok=True)
    return RunDirectoryRunner(cfg, run_dir, model, tokens.train, log_every=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_dirs, tiny_text) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    make_runner(run_dir, str(tiny_model_dirs["gpt2"]), str(tiny_text)).run()
    return run_dir


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(run_dir.glob("checkpoints/*/sae_weights.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_leaves_the_files_a_run_has(finished: Path) -> None:
    names = ["abstopk", "gated", "sign_aware_gated", "topk"]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir() if p.is_dir()) == names
    assert not (finished / "progress").exists()
    for name in names:
        sae = SAE.load_from_disk(finished / "checkpoints" / name)
        assert sae.cfg.architecture() == name
        assert sae.cfg.normalize_activations == "none"  # folded
        assert sae.cfg.metadata.hook_name == "blocks.0.hook_mlp_out"
    rows = read_metrics(finished / "metrics.jsonl")
    assert len(rows) == 20 * 4
    assert [row["n_tokens"] for row in rows if row["sae"] == "topk"] == list(range(32, 641, 32))
    last = {row["sae"]: row for row in rows[-4:]}
    first = {row["sae"]: row for row in rows[:4]}
    for name in names:
        assert last[name]["nmse"] < first[name]["nmse"]
        assert last[name]["seconds"] > 0
    assert last["abstopk"]["l0"] == 4.0
    assert "coefficients/l1" in last["gated"]


def test_a_loss_that_is_queued_is_looked_at_before_its_step_is_saved(
    tmp_path: Path, tiny_model_dirs, tiny_text, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_runner(tmp_path, str(tiny_model_dirs["gpt2"]), str(tiny_text))
    training.log_every = 1000
    step, steps = SAETrainer.step, []

    def broken(self, batch):
        output = step(self, batch)
        steps.append(self.n_training_steps)
        bad = self.n_training_steps >= 2
        return replace(output, loss=output.loss * torch.nan) if bad else output

    monkeypatch.setattr(SAETrainer, "step", broken)
    monkeypatch.setattr(runner, "_is_queued", lambda device: True)
    with pytest.raises(TrainingError, match=r"loss of step \d+ is nan"):
        training.run()
    assert max(steps) > 2  # it was not waited for
    assert latest_checkpoint(tmp_path / "progress") is None
    assert not (tmp_path / "checkpoints").exists()


# A run that kills itself, for real, after a given number of steps.
KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from tests.runs.test_runner import make_runner
from sae_lens_bipolar.runs import runner as training
run_dir, model, text, where, step = Path(sys.argv[2]), *sys.argv[3:6], int(sys.argv[6])
runner = make_runner(run_dir, model, text)
log_step, seal = runner._log_step, training.seal_checkpoint
def die(): os.kill(os.getpid(), signal.SIGKILL)
def log(name, trainer, output):
    log_step(name, trainer, output)
    if where == "step" and trainer.n_training_steps == step and name == "gated": die()
def sealing(path):
    if where == "before_seal" and path.name == str(32 * step): die()
    seal(path)
    if where == "after_seal" and path.name == str(32 * step): die()
runner._log_step, training.seal_checkpoint = log, sealing
runner.run()
"""


@pytest.mark.parametrize(
    ("where", "step"), [("step", 3), ("step", 13), ("before_seal", 11), ("after_seal", 16)]
)
def test_killed_runs_end_where_uninterrupted_ones_end(
    finished: Path, tmp_path: Path, tiny_model_dirs, tiny_text, where: str, step: int
) -> None:
    arguments = [str(tmp_path), str(tiny_model_dirs["gpt2"]), str(tiny_text)]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(Path(__file__).parents[2])]
    done = subprocess.run(
        [*command, *arguments, where, str(step)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (tmp_path / "checkpoints").exists()
    if where == "before_seal":  # the newest checkpoint is half-made
        assert (tmp_path / "progress" / str(32 * step)).is_dir()
    make_runner(tmp_path, arguments[1], arguments[2]).run()
    expected, found = weights(finished), weights(tmp_path)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    clean = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_metrics(finished / "metrics.jsonl")
    ]
    resumed = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_metrics(tmp_path / "metrics.jsonl")
    ]
    assert resumed == clean


def test_training_improves_on_held_out_text(finished: Path, tiny_model: HookedTransformer) -> None:
    """The saved SAEs reconstruct activations they have not seen better than the mean does."""
    x = tiny_model.run_with_cache(torch.randint(3, 300, (8, CONTEXT)))[1]["blocks.0.hook_mlp_out"]
    x = x[:, 1:].flatten(0, 1)
    for name in ("topk", "abstopk"):
        xhat = SAE.load_from_disk(finished / "checkpoints" / name)(x)
        assert (x - xhat).pow(2).sum() < (x - x.mean(0)).pow(2).sum()


def test_bad_input_is_refused_before_work_starts(
    tmp_path: Path, tiny_model_dirs, tiny_text
) -> None:
    model, text = str(tiny_model_dirs["gpt2"]), str(tiny_text)
    with pytest.raises(ModelError, match=r"did you mean 'blocks\.0\.hook_mlp_out'"):
        make_runner(tmp_path, model, text, hook_names="blocks.0.hook_mlp_outt")
    saes = {"a": AbsTopKTrainingSAEConfig(d_in=33, d_sae=48, k=4)}
    with pytest.raises(ConfigError, match="has width 32"):
        make_runner(tmp_path, model, text, saes=saes)
    with pytest.raises(DataError, match="training_tokens=10000000 needs"):
        make_runner(tmp_path, model, text, training_tokens=10_000_000)
    assert not any(tmp_path.iterdir())


def test_activations_that_are_not_finite_name_the_hook(
    tmp_path: Path, tiny_model_dirs, tiny_text
) -> None:
    runner = make_runner(tmp_path, str(tiny_model_dirs["gpt2"]), str(tiny_text))
    with torch.no_grad():
        runner.model.blocks[0].mlp.b_out[0] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(ActivationError, match=r"blocks\.0\.hook_mlp_out.*batch 0"):
        runner.run()


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"n_tokens": 1}) + "\n" + '{"n_tok')
    assert read_metrics(file) == [{"n_tokens": 1}]


def test_progress_is_shown_twice_a_second_and_at_the_end(monkeypatch) -> None:
    now, shown = [0.0], []
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(n_training_samples=0, cfg=SimpleNamespace(total_training_samples=10))
    pbar = SimpleNamespace(set_description=lambda text: None, set_postfix_str=shown.append)
    x = torch.ones(2, 3)
    outputs: Any = {"a": SimpleNamespace(sae_in=x, sae_out=0 * x)}
    for samples, seconds in ((1, 9.0), (2, 9.1), (3, 9.4), (4, 9.6), (5, 9.7), (10, 9.8)):
        trainer.n_training_samples, now[0] = samples, seconds
        runner._show(trainer, outputs, pbar)  # type: ignore[arg-type]
        assert pbar.n == {1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 10: 10}[samples]
    assert shown == ["nMSE a 1.000"] * 3
