"""The recipe of Figure 4 trains, resumes, and says what its own result files give."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.abstopk import figure4
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json
from tests.recipes.abstopk.settings import tiny_scale, write_config


def test_end_to_end_and_again(
    tiny_model_dirs: dict[str, Path], tiny_text: Path, tmp_path: Path
) -> None:
    settings = tiny_scale(tiny_model_dirs["gpt2"], tiny_text) | {"corpus_characters": 40_000}
    config = write_config(tmp_path, tiny=settings)
    arguments = ["--scale", "tiny", "--config", str(config), "--output", str(tmp_path / "run")]
    arguments += ["--device", "cpu"]
    figure4.main([*arguments, "--cells", "another"])
    assert not (tmp_path / "run/cells").exists()
    figure4.main(arguments)
    run = tmp_path / "run"
    summary = read_json(run / "results/summary.json")
    assert [(row["method"], row["layer"], row["point"]) for row in summary] == [
        (method, layer, point)
        for layer in (0, 1)
        for method, points in (
            ("topk", ("k4", "k8")),
            ("abstopk", ("k4", "k8")),
            ("jumprelu", ("theta0.01", "theta0.1")),
        )
        for point in points
    ]
    assert {row["architecture"] for row in summary} == {"topk", "abstopk", "jumprelu"}
    with open(run / "report/figure4.csv", encoding="utf-8") as file:
        drawn = list(csv.DictReader(file))
    assert [float(row["nmse"]) for row in drawn] == [row["nmse"] for row in summary]
    assert (run / "report/figure4.png").read_bytes()[:4] == b"\x89PNG"
    assert len(read_json(run / "results/claims.json")) == 3
    weights = list(run.glob("cells/*/sweep/checkpoints/*/sae_weights.safetensors"))
    files = [*weights, *run.glob("cells/*/sweep/metrics.jsonl")]
    before = {file: file.stat().st_mtime_ns for file in files}
    assert len(files) == 12 + 2
    figure4.main(arguments)
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert read_json(run / "results/summary.json") == summary


def _row(method: str, k: int | None, l0: float, value: float) -> dict[str, Any]:
    measured = {"train_mse": value, "nmse": value, "loss_recovered": 1 - value}
    shared = {"model": "m", "layer": 3, "seed": 0, "n_train_tokens": 100, "point": "p"}
    return {"method": method, "k": k, "l0": l0, **measured, **shared}


def test_jumprelu_is_compared_where_its_sweep_reaches() -> None:
    rows = [
        *(_row("jumprelu", None, l0, value) for l0, value in ((8, 0.3), (32, 0.1), (0, 1.0))),
        *(_row("topk", k, k, value) for k, value in ((4, 0.5), (16, 0.25), (32, 0.2))),
        *(_row("abstopk", k, k, value) for k, value in ((4, 0.4), (16, 0.15), (32, 0.3))),
    ]
    compared = [one for one in figure4.comparisons(rows) if one.measure.key == "nmse"]
    # 16 lies halfway between 8 and 32 on the log axis.
    assert [one.jumprelu for one in compared] == [None, pytest.approx(0.2), pytest.approx(0.1)]
    for claim in figure4.claims(rows, {}):  # loss recovered is 1 - nMSE here: the same ranking
        assert claim.ours.startswith(
            "better than TopK at 2 of 3 k; better than JumpReLU at 1 of the 2 k that its sweep "
            "reaches. Gain over TopK"
        )
        assert claim.verdict == "undecided"  # one seed
    table = figure4.table(figure4.comparisons(rows))
    assert "| m | 3 | 4 | – | 0.5 | **0.4** | – | 0.5 | **0.4** | – | 0.5 | **0.6** |" in table
    assert "| m | 3 | 16 | 0.2 | 0.25 | **0.15** |" in table


def _seeds(abstopk: float, zeros: float | None = None, **more: Any) -> list[dict[str, Any]]:
    """Three seeds that hardly differ; JumpReLU 0.3, TopK 0.25."""
    rows = []
    for seed in range(3):
        each = {"seed": seed, "dead_fraction": 0.01, "name": "n", **more}
        near = 1e-4 * seed
        for k in (16, 32):
            rows += [
                _row("jumprelu", k, k, 0.3 + near) | each,
                _row("topk", k, k, 0.25 - near) | each,
                _row("abstopk", k, k, abstopk) | each,
            ]
        if zeros is not None:
            rows += [
                _row("abstopk", 16, 16, zeros) | each | {"start": "zeros"},
                _row("topk", 16, 16, 0.25 - near) | each | {"start": "zeros"},
            ]
    return rows


def _verdicts(rows: list[dict[str, Any]], margin: float = 0.01) -> list[str]:
    margins = {"nmse": margin, "train_mse": margin, "loss_recovered": margin, "l0": 0.1}
    return [claim.verdict for claim in figure4.claims(rows, margins)]


def test_the_claim_holds_where_abstopk_leads() -> None:
    assert _verdicts(_seeds(0.2))[:3] == ["holds"] * 3
    assert _verdicts(_seeds(0.26))[:3] == ["does not hold"] * 3
    assert _verdicts(_seeds(0.25))[:3] == ["does not hold"] * 3  # a lead within the margin is none
    assert _verdicts(_seeds(0.2475))[:1] == ["undecided"]
    gain = figure4.claims(_seeds(0.2), {})[1]
    assert gain.estimate == pytest.approx((0.2499 - 0.2) / 0.2499, rel=1e-3)  # over the nearer one


def test_starts_latents_and_targets_have_their_claims() -> None:
    *_, abstopk, topk, ranking, alive, targets = _verdicts(_seeds(0.2, zeros=0.4))
    assert (abstopk, topk, ranking) == ("holds", "does not hold", "does not hold")
    assert (alive, targets) == ("holds", "holds")
    *_, ranking, alive, _ = _verdicts(_seeds(0.2, zeros=0.1, dead_fraction=0.5))
    assert (ranking, alive) == ("holds", "does not hold")
    *_, targets = _verdicts([row | {"l0": row["l0"] * 1.2} for row in _seeds(0.2)])
    assert targets == "does not hold"
    assert _verdicts(_seeds(0.2))[3:6] == ["not run at this scale"] * 3


def test_tables_and_figures_have_means_over_seeds() -> None:
    rows = _seeds(0.2, zeros=0.4)
    table = figure4.table(figure4.averaged(figure4.comparisons(rows)))
    assert "| m | 3 | 16 | 0.3001 | 0.2499 | **0.2** |" in table
    drawn = figure4.figure([row | {"point": f"k{row['k']}"} for row in rows]).rows
    assert len(drawn) == 6


def test_at_one_sparsity_every_seed_is_drawn_with_the_interval_of_its_method() -> None:
    rows = [row for row in _seeds(0.2, zeros=0.4) if row["k"] == 16]
    plot = figure4.figure(rows)
    assert len(plot.rows) == len(rows) == 15
    nmse = plot.figure.axes[1]
    names = [label.get_text() for label in plot.figure.axes[0].get_yticklabels()]
    assert names[:2] == ["TopK, b_dec from 0", "AbsTopK, b_dec from 0"]
    seeds, mean, interval = nmse.lines[6:9]  # JumpReLU's, the third from below
    assert names[2] == "JumpReLU"
    assert sorted(np.asarray(seeds.get_xdata())) == pytest.approx([0.3, 0.3001, 0.3002])
    assert list(np.asarray(mean.get_xdata())) == pytest.approx([0.3001])
    half = 4.302653 * 1e-4 / 3**0.5  # Student's t with 2 degrees of freedom
    assert list(np.asarray(interval.get_xdata())) == pytest.approx([0.3001 - half, 0.3001 + half])


def test_an_unknown_model_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="models='gtp2'"):
        figure4.main(["--models", "gtp2", "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
