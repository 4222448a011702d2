"""A sweep over two hooks and four architectures on a tiny model: files, figures, resuming."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_lens import AbsTopKTrainingSAEConfig, GatedTrainingSAEConfig

from sae_lens_bipolar.errors import ConfigError, DataError, ModelError
from sae_lens_bipolar.evaluation.reconstruction import measure
from sae_lens_bipolar.runs import assets
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
SAES = {
    "narrow": SweepSAE(RESID, partial(AbsTopKTrainingSAEConfig, d_sae=48, k=4), {"label": "H"}),
    "wide": SweepSAE(RESID, partial(AbsTopKTrainingSAEConfig, d_sae=96, k=4), {"label": "2H"}),
    "mlp": SweepSAE(MLP, partial(AbsTopKTrainingSAEConfig, d_sae=48, k=3), {"seed": 7}),
    "gated": SweepSAE(MLP, partial(GatedTrainingSAEConfig, d_sae=48, l1_coefficient=0.1)),
}
SIZES: dict[str, Any] = {
    "context_size": 32,
    "training_tokens": 1600,
    "train_batch_size_tokens": 64,
    "lr_warm_up_steps": 2,
    "lr_decay_steps": 5,
    "n_checkpoints": 2,
    "eval_sequences": 10,
    "loss_sequences": 6,
    "n_batches_in_buffer": 16,
    "seed": 3,
}


@pytest.fixture(scope="module")
def config(tiny_model_dirs, tiny_text) -> SweepConfig:
    return SweepConfig(model=str(tiny_model_dirs["gpt2"]), corpus=str(tiny_text), **SIZES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config) -> Path:
    run_dir = tmp_path_factory.mktemp("sweeps") / "two-hooks"
    run_sweep(config, SAES, run_dir)
    return run_dir


def test_one_row_per_sae_with_its_hook_and_tags(finished: Path) -> None:
    rows = json.loads((finished / "results/summary.json").read_text())
    assert [row["name"] for row in rows] == list(SAES)
    assert [row["hook_name"] for row in rows] == [RESID, RESID, MLP, MLP]
    assert [row["d_sae"] for row in rows] == [48, 96, 48, 48]
    assert [row.get("label") for row in rows] == ["H", "2H", None, None]
    assert [row["seed"] for row in rows] == [3, 3, 7, 3]
    assert [row["l0"] for row in rows][:3] == [4, 4, 3]
    for row in rows:
        assert row["n_eval_tokens"] + row["n_sink_tokens"] == 10 * 32
        assert row["n_loss_tokens"] <= 6 * 31
        assert row["n_train_tokens"] == 1600
        logged = read_metrics(finished / "metrics.jsonl")
        errors = [line["mse_loss"] for line in logged if line["sae"] == row["name"]]
        assert row["train_mse"] == errors[-1]  # five per cent of three lines is one line
        assert (finished / f"results/census/{row['name']}.json").is_file()
    resolved = yaml.safe_load((finished / "config.yaml").read_text())
    assert resolved["saes"]["mlp"]["hook_name"] == MLP
    assert resolved["saes"]["wide"]["d_sae"] == 96
    assert resolved["adam_beta2"] == 0.999


def test_figures_are_those_of_the_checkpoints(finished: Path, config: SweepConfig) -> None:
    model, tokens = assets.load_assets(config, SAES)
    sae = load_sae(finished / "checkpoints/mlp")
    held_out = torch.as_tensor(tokens.held_out["input_ids"])[:10]
    found = measure({"mlp": sae}, model, held_out, n_loss_sequences=6)["mlp"]
    row = json.loads((finished / "results/summary.json").read_text())[2]
    assert row["r2"] == pytest.approx(found.without_sinks.r2, rel=1e-6)
    assert row["loss_recovered"] == pytest.approx(found.without_sinks.loss_recovered, rel=1e-6)


def test_saes_beside_it_change_nothing(finished: Path, config: SweepConfig, tmp_path: Path) -> None:
    """The first SAE's weights are drawn first, so alone it must end exactly as in company."""
    (alone,) = run_sweep(config, {"narrow": SAES["narrow"]}, tmp_path / "alone")
    together = json.loads((finished / "results/summary.json").read_text())[0]
    timed = {"train_seconds": None}
    assert alone | timed == together | timed


def test_a_finished_sweep_is_not_redone_and_another_is_refused(
    finished: Path, config: SweepConfig
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    rows = run_sweep(config, SAES, finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before
    assert [row["name"] for row in rows] == list(SAES)
    moved = {**SAES, "mlp": SAES["mlp"]._replace(hook_name=RESID)}
    with pytest.raises(ConfigError, match=r"saes\.mlp\.hook_name"):
        run_sweep(config, moved, finished)


def test_measuring_alone_is_resumed(finished: Path, config: SweepConfig, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "results/summary.json").unlink()
    assert run_sweep(config, SAES, copy) == json.loads(
        (finished / "results/summary.json").read_text()
    )


def test_no_saes_or_no_such_hook(config: SweepConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no SAEs"):
        run_sweep(config, {}, tmp_path / "none")
    wrong = {"x": SAES["mlp"]._replace(hook_name="blocks.1.hook_mlp_outt")}
    with pytest.raises(ModelError, match="hook_mlp_out"):
        run_sweep(config, wrong, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_text_column_reaches_the_corpus(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded only where it is given, so that runs from before it can go on."""
    asked: dict[str, object] = {}

    def load(source: str, **options: object) -> list[object]:
        asked.update(options, source=source)
        raise DataError("read enough")

    monkeypatch.setattr(assets, "load_documents", load)
    with pytest.raises(DataError, match="read enough"):
        run_sweep(replace(config, text_column="body"), SAES, tmp_path / "run")
    assert asked == {"source": config.corpus, "text_column": "body", "streaming": None}
    assert "text_column" not in config.record()
    assert replace(config, text_column="body").record()["text_column"] == "body"
