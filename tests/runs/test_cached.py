"""Sweeps that train on cached activations: the model does not run, and what differs is refused."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file

from sae_lens_bipolar import AbsTopKTrainingSAEConfig, GatedL0TrainingSAEConfig
from sae_lens_bipolar.errors import ConfigError, DataError, ModelError
from sae_lens_bipolar.inputs.activations import CachedActivations
from sae_lens_bipolar.inputs.caching import CacheConfig, cache_activations
from sae_lens_bipolar.runs.cached import CachedStore
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
SCALED = {"normalize_activations": "expected_average_only_in"}
SAES = {
    "resid": SweepSAE(RESID, partial(AbsTopKTrainingSAEConfig, d_sae=48, k=4, **SCALED)),
    "twin": SweepSAE(RESID, partial(AbsTopKTrainingSAEConfig, d_sae=48, k=2)),
    "mlp": SweepSAE(MLP, partial(GatedL0TrainingSAEConfig, d_sae=48, l0_target=4.0, **SCALED)),
}
SIZES: dict[str, Any] = {
    "context_size": 32,
    "training_tokens": 1280,
    "train_batch_size_tokens": 64,
    "lr_warm_up_steps": 2,
    "lr_decay_steps": 5,
    "n_checkpoints": 3,
    "eval_sequences": 10,
    "loss_sequences": 6,
    "n_batches_in_buffer": 16,
    "seed": 3,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_model_dirs, tiny_text) -> SweepConfig:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    model, corpus = str(tiny_model_dirs["gpt2"]), str(tiny_text)
    hooks = (MLP, RESID)
    cache_activations(
        CacheConfig(hooks, model, corpus, None, 2000, 12, 32, shard_rows=16, seed=5), folder
    )
    return SweepConfig(model=model, corpus=corpus, activations=str(folder), **SIZES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config: SweepConfig) -> Path:
    run_dir = tmp_path_factory.mktemp("sweeps") / "cached"
    run_sweep(config, SAES, run_dir)
    return run_dir


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(run_dir.glob("checkpoints/*/sae_weights.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_the_model_does_not_run_while_training(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the language model ran")

    monkeypatch.setattr(ActivationsStore, "get_multi_hook_activations", refuse)
    rows = run_sweep(config, SAES, tmp_path / "run")
    assert [row["name"] for row in rows] == list(SAES)
    assert all(row["n_train_tokens"] == 1280 for row in rows)
    assert all(row["n_eval_tokens"] + row["n_sink_tokens"] == 320 for row in rows)


def test_every_sae_reads_the_same_batches_of_the_cache(
    config: SweepConfig, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also alone: the first SAE's weights and batches are those that it has in company."""
    run_sweep(config, {"resid": SAES["resid"]}, tmp_path / "alone")
    alone, together = weights(tmp_path / "alone"), weights(finished)
    assert alone
    assert all(torch.equal(tensor, together[name]) for name, tensor in alone.items())
    assert config.activations is not None
    cache = CachedActivations(config.activations)
    expected = list(islice(cache.batches([RESID, MLP], 64, seed=3, mixed_rows=16), 28))
    seen: list[dict[str, torch.Tensor]] = []
    batches = CachedStore._iterate_filtered_multi_hook_activations

    def spied(store: CachedStore) -> Any:
        for batch in batches(store):
            seen.append(batch)
            yield batch

    monkeypatch.setattr(CachedStore, "_iterate_filtered_multi_hook_activations", spied)
    run_sweep(config, SAES, tmp_path / "spied")
    assert len(seen) == 8 + 20  # eight estimate the scale of activations
    for one, other in zip(seen, expected, strict=True):
        assert torch.equal(one[RESID], other[RESID])
        assert torch.equal(one[MLP], other[MLP])


# A sweep that kills itself, for real, after a step.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from tests.runs.test_cached import SAES, SIZES
from sae_lens_bipolar.runs import runner
from sae_lens_bipolar.runs.sweep import SweepConfig, run_sweep
show = runner._show
def die(trainer, outputs, pbar):
    if trainer.n_training_steps == 13: os.kill(os.getpid(), signal.SIGKILL)
runner._show = die
run_dir, model, corpus, cache = sys.argv[2:6]
config = SweepConfig(model=model, corpus=corpus, activations=cache, **SIZES)
run_sweep(config, SAES, Path(run_dir))
"""


def test_killed_and_resumed_it_ends_the_same(
    config: SweepConfig, finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(Path(__file__).parents[2])]
    arguments = [str(run_dir), config.model, config.corpus, str(config.activations)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={**os.environ}, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert list((run_dir / "progress").iterdir())
    run_sweep(config, SAES, run_dir)
    one, other = weights(run_dir), weights(finished)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    timed = {"seconds": 0}
    assert [row | timed for row in read_metrics(run_dir / "metrics.jsonl")] == [
        row | timed for row in read_metrics(finished / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_size": 16}, r"context_size=16 .* were cached with 32"),
        ({"reading": "stream"}, "reading='stream'"),
        ({"options": {"exclude_special_tokens": False}}, "exclude_special_tokens=False"),
        ({"options": {"autocast_lm": True}}, "autocast_lm=True .* were cached with False"),
        ({"eval_sequences": 13}, r"eval_sequences=13 .* holds out 12"),
    ],
)
def test_a_sweep_that_does_not_fit_the_cache_is_refused(
    config: SweepConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_sweep(replace(config, **changes), SAES, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_made_under_autocast_trains_and_says_how_it_was_made(
    config: SweepConfig, tmp_path: Path
) -> None:
    made = CacheConfig(
        (RESID,), config.model, config.corpus, None, 2000, 12, 32, shard_rows=16, seed=5
    )
    folder = tmp_path / "cast"
    cache_activations(replace(made, autocast_lm=True), folder)
    cast = replace(config, activations=str(folder))
    saes = {"twin": SAES["twin"]}
    with pytest.raises(ConfigError, match=r"autocast_lm=False .* were cached with True"):
        run_sweep(replace(cast, options={"autocast_lm": False}), saes, tmp_path / "run")
    run_sweep(cast, saes, tmp_path / "run")
    assert (tmp_path / "run/results/summary.json").is_file()


def test_another_model_text_or_hook_is_refused(
    config: SweepConfig, tmp_path: Path, tiny_model_dirs: dict[str, Path]
) -> None:
    other_hook = {"x": SAES["mlp"]._replace(hook_name="blocks.0.hook_mlp_out")}
    with pytest.raises(ConfigError, match=r"blocks\.0\.hook_mlp_out.* is not in the cache"):
        run_sweep(config, other_hook, tmp_path / "run")
    llama = {"x": SAES["mlp"]}
    with pytest.raises(ModelError, match="made with another model"):
        run_sweep(replace(config, model=str(tiny_model_dirs["llama"])), llama, tmp_path / "run")
    text = tmp_path / "other.jsonl"
    text.write_text(Path(config.corpus).read_text().replace("sparrow", "swallow"))
    with pytest.raises(DataError, match="made of another text"):
        run_sweep(replace(config, corpus=str(text)), SAES, tmp_path / "run")


def test_a_cache_that_is_too_short_is_read_again_only_if_asked(
    config: SweepConfig, tmp_path: Path
) -> None:
    longer = replace(config, training_tokens=2560, n_checkpoints=0)
    with pytest.raises(DataError, match=r"holds 2015 tokens; training_tokens=2560 needs 3136"):
        run_sweep(longer, SAES, tmp_path / "run")
    (row,) = run_sweep(replace(longer, repeat=True), {"x": SAES["twin"]}, tmp_path / "repeated")
    assert row["n_train_tokens"] == 2560
