"""The cells recipe end to end on a tiny model, and verdicts that follow the result files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.common.scales import build, read_scale
from recipes.sagsae import cells, cells_verdicts
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.runs.sweep import SweepConfig


def tiny_scale(model: Path, text: Path) -> dict[str, Any]:
    return {
        "models": [{"model": str(model), "layer": 1, "corpus": str(text)}],
        "width": 32,
        "l0_targets": [4, 8],
        "l1_start": 3.0,
        "seeds": [0, 1],
        "hookpoints": ["mlp_out", "resid_post"],
        "repeated": ["SA-GSAE H", "Gated 2H"],
        "sweep": {
            "context_size": 32,
            "training_tokens": 1600,
            "train_batch_size_tokens": 64,
            "lr_warm_up_steps": 2,
            "lr_decay_steps": 5,
            "n_checkpoints": 1,
            "eval_sequences": 8,
            "loss_sequences": 4,
            "n_batches_in_buffer": 16,
        },
    }


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory, tiny_model_dirs, tiny_text) -> Path:
    file = tmp_path_factory.mktemp("config") / "cells.yaml"
    file.write_text(yaml.safe_dump({"tiny": tiny_scale(tiny_model_dirs["gpt2"], tiny_text)}))
    return file


def options(config: Path, output: Path, *more: str) -> list[str]:
    return ["--scale=tiny", f"--config={config}", f"--output={output}", *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config: Path) -> Path:
    output = tmp_path_factory.mktemp("runs") / "cells"
    cells.main(options(tiny_config, output))
    return output


def test_every_sae_of_every_cell_has_a_row(finished: Path) -> None:
    rows = read_json(finished / "results/saes.json")
    # Two hookpoints of two targets: six kinds in the first seed, two in the second.
    assert len(rows) == 2 * 2 * (6 + 2)
    assert [row["seed"] for row in rows] == [0] * 24 + [1] * 8
    for row in rows:
        assert row["d_sae"] == (64 if row["label"].endswith("2H") else 32)
        assert row["hook_name"] == f"blocks.1.hook_{row['hookpoint']}"
        assert row["model"] == "gpt2"
        assert "train_seconds" not in row
        if "TopK" in row["label"]:
            assert row["l0"] <= row["l0_target"]
    assert {p.name for p in (finished / "cells").iterdir()} == {
        "gpt2.layer1.seed0",
        "gpt2.layer1.seed1",
    }


def test_figures_come_with_the_points_they_show(finished: Path) -> None:
    for name in ("dead_fraction", "loss_recovered", "r2"):
        assert (finished / f"report/{name}.png").read_bytes()[:4] == b"\x89PNG"
        lines = (finished / f"report/{name}.csv").read_text().splitlines()
        assert len(lines) == 1 + 2 * 6 * 2
    for file in ("config.yaml", "environment.json", "results/claims.json"):
        assert (finished / file).is_file()


def test_a_finished_recipe_is_not_redone_and_a_changed_one_is_refused(
    finished: Path, tiny_config: Path, tmp_path: Path
) -> None:
    files = [p for p in (finished / "cells").rglob("*") if p.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    cells.main(options(tiny_config, finished))
    assert {path: path.stat().st_mtime_ns for path in files} == before
    scale = yaml.safe_load(tiny_config.read_text())["tiny"]
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"tiny": {**scale, "width": 40}}))
    with pytest.raises(ConfigError, match="width: 32 there, 40 now"):
        cells.main(options(other, finished))


def rows_by_hand(r2: dict[str, float], dead: dict[str, float]) -> list[dict[str, Any]]:
    """Three seeds and two targets of both sides, at one hookpoint of one model."""
    return [
        {
            "name": f"{label}.{target}",
            "label": label,
            "model": "m",
            "hookpoint": "mlp_out",
            "seed": seed,
            "l0_target": target,
            "l0": float(target),
            "d_sae": 100,
            "r2": r2[label] + 0.001 * seed,
            "loss_recovered": r2[label],
            "dead_fraction": dead[label],
            "bipolar_fraction": 0.9 if label == "SA-GSAE H" else 0.0,
            "n_train_tokens": 1000,
            "n_eval_tokens": 500,
        }
        for label in r2
        for target in (16, 64)
        for seed in (0, 1, 2)
    ]


def written(rows: list[dict[str, Any]], output: Path, r2: float = 0.0) -> dict[str, str]:
    output.mkdir(exist_ok=True)
    (output / "config.yaml").write_text(f"margins: {{r2: {r2}, l0: 0.1}}")
    write_json(output / "results/saes.json", rows)
    cells_verdicts.report(output)
    found = read_json(output / "results/claims.json")
    return {claim["claim"]: claim["verdict"] for claim in found}


def first(found: dict[str, str], words: str) -> str:
    (value,) = [verdict for claim, verdict in found.items() if words in claim]
    return value


def test_changing_a_result_file_changes_the_verdict(tmp_path: Path) -> None:
    ours_better = rows_by_hand(
        {"SA-GSAE H": 0.8, "Gated 2H": 0.7}, {"SA-GSAE H": 0.001, "Gated 2H": 0.5}
    )
    found = written(ours_better, tmp_path)
    assert first(found, "is above") == "holds"
    assert first(found, "within 0.025") == "not run at this scale"
    assert first(found, "mlp_out: the dead fraction") == "holds"
    assert first(found, "attn_out: the dead fraction") == "not run at this scale"
    assert first(found, "fire on both sides") == "holds"
    assert first(found, "meets its L0 target") == "holds"
    assert first(found, "collapses") == "not run at this scale"

    rows = read_json(tmp_path / "results/saes.json")
    for row in rows:
        if row["label"] == "SA-GSAE H" and row["l0_target"] == 64:
            row["r2"], row["dead_fraction"], row["bipolar_fraction"] = 0.4, 0.4, 0.2
            row["l0"] = 80.0
    found = written(rows, tmp_path)
    assert first(found, "is above") == "does not hold"
    assert first(found, "within 0.025") == "does not hold"
    assert first(found, "mlp_out: the dead fraction") == "does not hold"
    assert first(found, "fire on both sides") == "does not hold"
    assert first(found, "meets its L0 target") == "does not hold"


def test_margins_and_seeds_decide(tmp_path: Path) -> None:
    dead = {"SA-GSAE H": 0.1, "Gated 2H": 0.5}
    rows = rows_by_hand({"SA-GSAE H": 0.72, "Gated 2H": 0.7}, dead)
    assert first(written(rows, tmp_path, r2=0.01), "is above") == "holds"
    found = written(rows, tmp_path, r2=0.03)
    assert first(found, "is above") == "does not hold"
    assert first(found, "within 0.025") == "holds"
    assert first(found, "by 0.35 or more") == "holds"
    one_seed = written([row for row in rows if row["seed"] == 0], tmp_path)
    assert {v for v in one_seed.values() if "run" not in v} == {"undecided", "holds"}
    assert [c for c, v in one_seed.items() if v == "holds"] == [
        "every SAE meets its L0 target within 10% on held-out tokens"
    ]


def test_full_width_collapse_is_looked_for_seed_by_seed() -> None:
    r2 = {"SA-GSAE H": 0.8, "SA-GSAE 2H": 0.75}
    rows = rows_by_hand(r2, dict.fromkeys(r2, 0.1))
    for row in rows:
        row["hookpoint"] = "resid_post"
    assert cells_verdicts.full_width(rows).verdict == "does not hold"
    rows[-1]["r2"] = 0.5
    assert cells_verdicts.full_width(rows).verdict == "undecided"  # in one seed of three
    for row in rows:
        if row["label"] == "SA-GSAE 2H" and row["l0_target"] == 64:
            row["r2"] = 0.5 + 0.001 * row["seed"]
    assert cells_verdicts.full_width(rows).verdict == "holds"
    assert cells_verdicts.full_width([]).verdict == "not run at this scale"


def test_zero_dead_latents_stand_at_half_a_latent() -> None:
    labels = {"SA-GSAE H": 0.0, "Gated 2H": 0.5}
    (row,) = cells_verdicts.comparisons(rows_by_hand(dict.fromkeys(labels, 0.7), labels))
    ratio = row["dead_fraction_ratio"]
    assert ratio["n_floored"] == ratio["n"] == 2
    assert ratio["value"] == pytest.approx(0.5 / (0.5 / 300))  # three SAEs of 100 latents


def test_sweeps_that_do_not_meet_are_not_compared(tmp_path: Path) -> None:
    labels = {"SA-GSAE H": 0.1, "Gated 2H": 0.1}
    rows = rows_by_hand(dict.fromkeys(labels, 0.7), labels)
    for row in rows:
        row["l0"] += 100 if row["label"] == "Gated 2H" else 0
    found = written(rows, tmp_path)
    assert first(found, "is above") == "not run at this scale"
    assert read_json(tmp_path / "results/comparisons.json")[0]["r2"] is None


@pytest.mark.parametrize("scale", ["small", "medium", "paper"])
def test_published_scales_are_whole(scale: str) -> None:
    config = build(cells.CellsConfig, read_scale(cells.CONFIG, scale), scale)
    planned = cells.make_cells(config)
    assert len(config.seeds) >= 3
    assert len(config.l0_targets) >= 3
    assert len({cell.name for cell in planned}) == len(planned)
    for cell in planned:
        SweepConfig(**cell.params["sweep"])
        for hookpoint in cell.params["hookpoints"]:
            for label in cell.params["kinds"]:
                cells.make_sae(cell.params, hookpoint, label, 32).config(d_in=8)
        assert {"SA-GSAE H", "Gated 2H"} <= set(cell.params["kinds"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", []),
        ("models", [{"model": "m"}]),
        ("sweep", {"training_token": 8}),
        ("l0_target", [2]),
        ("kinds", ["Gated 3H"]),
        ("l0_targets", [0]),
        ("l1_start", 0.0),
        ("repeated", ["Gated H"]),
    ],
)
def test_fields_that_are_not_allowed(field: str, value: Any) -> None:
    models = [{"model": "m", "layer": 1}]
    whole = {"models": models, "width": 8, "l0_targets": [2], "l1_start": 1.0, "seeds": [0]}
    kinds = {"kinds": ["SA-GSAE H"], "repeated": ["SA-GSAE H"]}
    with pytest.raises(ConfigError, match=field):
        build(cells.CellsConfig, {**whole, **kinds, field: value}, "a scale")


@pytest.mark.slow
def test_ray_gives_the_result_files_of_a_sequential_run(
    finished: Path, tiny_config: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cells.main(options(tiny_config, tmp_path / "ray", f"--cluster={cluster.address}"))
    finally:
        cluster.shutdown()
    for file in ("results/saes.json", "results/comparisons.json", "results/claims.json"):
        assert (tmp_path / "ray" / file).read_bytes() == (finished / file).read_bytes()


@pytest.mark.slow
def test_a_cell_killed_in_the_middle_goes_on_from_its_checkpoint(
    finished: Path, tiny_config: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "cells"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "cells/gpt2.layer1.seed1/results")
    cells.main(options(tiny_config, copy))
    saes = "results/saes.json"
    assert json.loads((copy / saes).read_text()) == json.loads((finished / saes).read_text())
