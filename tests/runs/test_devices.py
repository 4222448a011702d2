"""SAEs of one sweep on devices of their own, and batches that a thread computes ahead."""

import threading
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import AbsTopKTrainingSAEConfig, GatedTrainingSAEConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from safetensors.torch import load_file

from sae_lens_bipolar.errors import ConfigError, TrainingError
from sae_lens_bipolar.runs.batches import ResumableBatches
from sae_lens_bipolar.runs.devices import dealt, follow, read_copies, stays
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.runner import RunDirectoryRunner
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep
from tests.runs.distributed.training import make_trainer

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
SCALED = {"d_sae": 48, "normalize_activations": "expected_average_only_in"}
SAES = {
    "first": SweepSAE(RESID, partial(AbsTopKTrainingSAEConfig, **SCALED, k=4)),
    "second": SweepSAE(RESID, partial(GatedTrainingSAEConfig, d_sae=48, l1_coefficient=0.1)),
    "third": SweepSAE(MLP, partial(AbsTopKTrainingSAEConfig, d_sae=40, k=3)),
}
META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture(scope="module")
def config(tiny_model_dirs, tiny_text) -> SweepConfig:
    return SweepConfig(
        model=str(tiny_model_dirs["gpt2"]),
        corpus=str(tiny_text),
        context_size=32,
        training_tokens=1600,
        train_batch_size_tokens=64,
        lr_warm_up_steps=2,
        n_checkpoints=2,
        eval_sequences=6,
        loss_sequences=4,
        n_batches_in_buffer=16,
        store_batch_size_prompts=4,
        options={"n_batches_for_norm_estimate": 2},
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory, config) -> Path:
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    run_sweep(config, SAES, run_dir)
    return run_dir


def require_same_results(run_dir: Path, other: Path) -> None:
    for name in SAES:
        file = f"checkpoints/{name}/sae_weights.safetensors"
        here, there = load_file(run_dir / file), load_file(other / file)
        assert here.keys() == there.keys()
        for key, tensor in there.items():
            assert torch.equal(here[key], tensor), f"{name} {key}"
    rows, expected = (read_metrics(d / "metrics.jsonl") for d in (run_dir, other))
    untimed = [{**row, "seconds": 0} for row in expected]
    assert [{**row, "seconds": 0} for row in rows] == untimed
    files = [{str(p.relative_to(d)) for p in d.rglob("*") if p.is_file()} for d in (run_dir, other)]
    assert files[0] == files[1]


def test_each_sae_trains_on_its_device_and_ends_the_same(
    tmp_path, config, plain, monkeypatch
) -> None:
    """A CPU answers to any number; what differs here is the path through the code."""
    seen: dict[str, Any] = {}
    finish = RunDirectoryRunner._finish

    def spy(self: RunDirectoryRunner, saes: dict[str, Any], trainer: MultiSAETrainer) -> None:
        seen["saes"] = {name: str(sae.device) for name, sae in saes.items()}
        seen["read"] = trainer.hook_names
        seen["trainers"] = {name: one.cfg.device for name, one in trainer.trainers.items()}
        finish(self, saes, trainer)

    monkeypatch.setattr(RunDirectoryRunner, "_finish", spy)
    run_sweep(replace(config, sae_devices=["cpu:0", "cpu:1"]), SAES, tmp_path / "run")
    placed = {"first": "cpu:0", "second": "cpu:1", "third": "cpu:0"}
    assert seen["saes"] == seen["trainers"] == placed
    assert seen["read"] == {
        "first": f"{RESID} on cpu:0",
        "second": f"{RESID} on cpu:1",
        "third": f"{MLP} on cpu:0",
    }
    require_same_results(tmp_path / "run", plain)


def test_placed_and_stopped_a_run_ends_the_same(tmp_path, config, plain, monkeypatch) -> None:
    placed = replace(config, sae_devices=["cpu:0", "cpu:1"])
    stop_after(15, placed, tmp_path / "run", monkeypatch)
    run_sweep(placed, SAES, tmp_path / "run")
    require_same_results(tmp_path / "run", plain)


def stop_after(step: int, config: SweepConfig, run_dir: Path, monkeypatch: Any) -> None:
    """Leave a run after a step."""
    log_step = RunDirectoryRunner._watch

    def watch(self: RunDirectoryRunner, name: str, trainer: Any) -> None:
        log_step(self, name, trainer)
        goes_on = trainer.step

        def stops(batch: torch.Tensor) -> Any:
            if trainer.n_training_steps == step:
                raise TrainingError("stopped")
            return goes_on(batch)

        trainer.step = stops

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectoryRunner, "_watch", watch)
        with pytest.raises(TrainingError, match="stopped"):
            run_sweep(config, SAES, run_dir)
    assert [path.name for path in (run_dir / "progress").iterdir()] == ["576"]


@pytest.mark.parametrize("ahead", [True, 3])
def test_batches_computed_ahead_are_the_same(tmp_path, config, plain, ahead, monkeypatch) -> None:
    options = {**config.options, "prefetch_llm_batches": ahead}
    config = replace(config, options=options)
    stop_after(15, config, tmp_path / "run", monkeypatch)
    run_sweep(config, SAES, tmp_path / "run")
    require_same_results(tmp_path / "run", plain)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


class Store:
    """An activation store that counts its batches, of one row of two tokens each."""

    n_dataset_processed = 0
    _hook_names = ("a",)
    train_batch_size_tokens = training_context_size = 2
    n_batches_in_buffer, activations_mixing_fraction = 1, 0.0

    def __init__(self, n: int):
        self.n, self.threads = n, set()

    def _iterate_filtered_multi_hook_activations(self) -> Any:
        for _ in range(self.n):
            self.threads.add(threading.current_thread())
            self.n_dataset_processed += 1
            yield {"a": torch.full((2, 3), float(self.n_dataset_processed))}


def test_nothing_is_read_past_a_checkpoint() -> None:
    store, left = Store(100), 5
    batches = ResumableBatches(store, 0, {"a": ("a", CPU)}, 3, lambda: left)  # type: ignore[arg-type]
    read = []
    for step in range(1, 11):
        assert next(batches)["a"][0, 0] == step
        left = 5 - step % 5
        if step == 5:
            batches.reseed()
        wait(batches._coming)
        read.append(store.n_dataset_processed)
    # Three ahead, at most up to the fifth and the tenth.
    assert read == [4, 5, 5, 5, 5, 9, 10, 10, 10, 10]
    assert threading.current_thread() not in store.threads
    batches.close()


def test_saes_of_one_hook_and_device_read_one_copy() -> None:
    saes = {name: SimpleNamespace(device=META) for name in "abc"}
    saes["d"] = SimpleNamespace(device=CPU)
    names = {"a": "x", "b": "x", "c": "y", "d": "x"}
    trainer: Any = SimpleNamespace(saes=saes, hook_names=names)
    copies = read_copies(trainer, CPU)
    assert copies == {"x on meta": ("x", META), "y on meta": ("y", META), "x": ("x", CPU)}
    assert trainer.hook_names == {"a": "x on meta", "b": "x on meta", "c": "y on meta", "d": "x"}
    assert names["a"] == "x", "SAELens's configuration stays as it was"


def test_what_a_trainer_holds_follows_its_sae() -> None:
    trainer = make_trainer(AbsTopKTrainingSAEConfig(d_in=12, d_sae=20, k=2, device="meta"), 3)
    sae = stays(trainer.sae)
    assert sae.to("cpu") is sae
    assert sae.device == sae.W_enc.device == META
    follow(trainer)
    assert trainer.cfg.device == "meta"
    assert trainer.dead_neurons.device == META
    trainer._reset_running_sparsity_stats()
    assert trainer.act_freq_scores.device == META


def test_devices_are_dealt_in_turn() -> None:
    assert dealt("abcde", ["x", "y"]) == {"a": "x", "b": "y", "c": "x", "d": "y", "e": "x"}
    assert dealt("ab", ["x", "y", "z"]) == {"a": "x", "b": "y"}


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_work_starts(tmp_path, config, device) -> None:
    unknown = replace(config, sae_devices=["cpu", device])
    with pytest.raises(ConfigError, match=f"sae_devices='{device}' is not allowed on this machine"):
        run_sweep(unknown, SAES, tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()
    with pytest.raises(ConfigError, match="sae_devices='cpu' is not allowed: give a list"):
        replace(config, sae_devices="cpu")


def test_reading_ahead_beside_wandb_is_refused(tmp_path, config) -> None:
    logs = {"log_to_wandb": True, "wandb_project": "p"}
    both = replace(config, options={"prefetch_llm_batches": 2, "logger": logs})
    with pytest.raises(ConfigError, match="prefetch_llm_batches=2 is not allowed with"):
        run_sweep(both, SAES, tmp_path / "run")
