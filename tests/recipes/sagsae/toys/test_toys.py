"""The toy protocols end to end at their smallest, and verdicts that follow the result files."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.common.scales import read_scale
from recipes.sagsae.toys import __main__ as toys
from recipes.sagsae.toys.claims import toy_claims
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json, write_json

ROOT = Path(__file__).parents[4]
FIGURES = {
    "fig04_polarity_dial",
    "fig05_anomalies",
    "fig06_geometry",
    "fig07_bi_jump_histogram",
    "fig08_superposition",
    "fig09_thresholded",
    "fig10_correlation",
    "fig11_calibration_cdf",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("toys")
    toys.main(["--scale", "smoke", "--output", str(output)])
    return output


def test_every_figure_has_its_data(run: Path) -> None:
    assert {file.stem for file in (run / "report").glob("*.png")} == FIGURES
    for name in FIGURES:
        with open(run / "report" / f"{name}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows, name
        for row in rows:
            if "ci_low" in row:
                assert float(row["ci_low"]) <= float(row["mean"]) <= float(row["ci_high"])


def test_rows_hold_what_was_asked_for(run: Path) -> None:
    config = toys.read_config(read_scale(toys.CONFIG, "smoke"))
    for protocol in toys.PROTOCOLS:
        rows = read_json(run / "results" / f"{protocol}.json")
        assert len(rows) == len(config.cells(protocol))
        assert {row["seed"] for row in rows} == set(config.seeds)
        assert all(row["train_samples"] == 12 * 64 for row in rows)
    for row in read_json(run / "results" / "pairs.json"):
        if row["contestant"] == "gated_2h":
            assert row["consolidation"] == 0
    assert {"environment.json", "config.yaml"} <= {file.name for file in run.iterdir()}


def test_a_cell_depends_on_nothing_but_its_parameters(run: Path) -> None:
    import torch

    torch.manual_seed(12345)
    (cell, *_) = (cell for cell in (run / "cells").iterdir() if "sa_gsae" in cell.name)
    params = read_json(cell / "cell.json")
    before = torch.random.get_rng_state()
    toys.run_cell(params, run / "again")
    assert torch.equal(before, torch.random.get_rng_state())
    assert (run / "again" / "result.json").read_bytes() == (cell / "result.json").read_bytes()


def test_finished_cells_are_kept(run: Path) -> None:
    cells = sorted((run / "cells").iterdir())
    stamps = {cell: (cell / "result.json").stat().st_mtime_ns for cell in cells}
    (cells[0] / "result.json").unlink()
    toys.main(["--scale", "smoke", "--output", str(run)])
    again = {cell: (cell / "result.json").stat().st_mtime_ns for cell in cells}
    assert [cell for cell in cells if again[cell] != stamps[cell]] == [cells[0]]


def test_in_parts(tmp_path: Path) -> None:
    part = ["--scale", "smoke", "--output", str(tmp_path), "--protocols", "pairs", "--cells"]
    toys.main([*part, "*sa_gsae_seed=0"])
    done = list((tmp_path / "cells").glob("*/result.json"))
    assert done
    assert not (tmp_path / "results").exists()  # a protocol is judged when it is complete
    toys.main([*part, "*"])
    rows = read_json(tmp_path / "results" / "pairs.json")
    assert len(rows) == len(list((tmp_path / "cells").glob("*/result.json"))) > len(done)


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_files(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "recipes.sagsae.toys", "--scale", "smoke"]
    command += ["--output", str(tmp_path), "--cluster", "auto", "--protocols", "pairs"]
    subprocess.run(command, check=True, cwd=ROOT)
    alone, spread = (folder / "results" / "pairs.json" for folder in (run, tmp_path))
    assert spread.read_bytes() == alone.read_bytes()


def test_another_scale_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="another configuration"):
        toys.main(["--scale", "small", "--output", str(run)])


def verdicts(run: Path) -> dict[str, str]:
    return {claim["claim"]: claim["verdict"] for claim in read_json(toys.judge(run))}


def test_verdicts_follow_the_result_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    unrun = verdicts(tmp_path)
    assert set(unrun.values()) == {"not run at this scale"}

    rows = read_json(run / "results" / "pairs.json")
    headline = next(iter(unrun))
    for rate, verdict in ((1.0, "holds"), (0.5, "does not hold")):
        changed = [
            row | ({"consolidation": rate} if row["contestant"] == "sa_gsae" else {})
            for row in rows
        ]
        write_json(tmp_path / "results" / "pairs.json", changed)
        found = read_json(toys.judge(tmp_path))
        (claim,) = (claim for claim in found if claim["claim"] == headline)
        assert claim["verdict"] == verdict
        assert claim["ours"] == f"{rate:.2f} [{rate:.2f}, {rate:.2f}]"
        assert (claim["seeds"], claim["tokens"]) == (2, 12 * 64)


def dial_rows(mse: dict[str, float]) -> list[dict[str, Any]]:
    row = {"true_l0": 2.0, "target": 2, "l0": 2.0, "l0_target": 2.0, "train_samples": 1}
    return [
        row
        | {"contestant": name, "seed": seed, "mse": value + seed, "calibration_error": value}
        | {"r2": 1 - value}
        for name, value in mse.items()
        for seed in range(3)
    ]


def test_comparisons_are_made_seed_by_seed() -> None:
    """Seeds differ by more than the SAEs do; only paired differences show which is lower."""
    rows = dial_rows({"sa_gsae": 0.2, "sa_gsae_untied": 0.2, "gated": 0.3, "gated_2h": 0.1})
    claims = toy_claims({"polarity_dial": rows})
    found = {claim.claim: claim for claim in claims if "MSE" in claim.claim}
    said = {name.split("than ")[1].split(" at")[0]: c.verdict for name, c in found.items()}
    assert said == {
        "Gated (H)": "holds",
        "Gated (2H)": "does not hold",
        "AbsTopK (H)": "not run at this scale",
    }
    (tying,) = (claim for claim in claims if claim.claim.startswith("Tying"))
    assert tying.verdict == "holds"
    worse = dial_rows({"sa_gsae": 0.21, "sa_gsae_untied": 0.2})
    claims = toy_claims({"polarity_dial": worse})
    (tying,) = (claim for claim in claims if claim.claim.startswith("Tying"))
    assert tying.verdict == "does not hold"


def test_small_has_the_published_breadth() -> None:
    """Every value that the larger scale sweeps over; no L0 target above what the world holds."""
    small, paper = (
        toys.read_config(read_scale(toys.CONFIG, scale)) for scale in ("small", "paper")
    )
    for protocol, fields in {
        "polarity_dial": ("contestants", "l0_targets", "dial"),
        "anomalies": ("contestants", "budgets", "negative_shares"),
        "pairs": ("contestants", "features_per_dimension", "correlations"),
    }.items():
        for field in fields:
            here, there = (getattr(getattr(scale, protocol), field) for scale in (small, paper))
            assert set(here) >= set(there), (protocol, field)
    for scale in (small, paper):
        for protocol in toys.PROTOCOLS:
            for cell in scale.cells(protocol):
                assert cell.params["l0"] <= cell.params["world"]["active"], cell.name


def test_the_plane_is_trained_as_it_asks() -> None:
    settings = json.loads(json.dumps(read_scale(toys.CONFIG, "smoke")))
    settings["pairs"].update(plane_lr=0.001, plane_steps=7)
    for cell in toys.read_config(settings).cells("pairs"):
        training = cell.params["training"]
        plane = cell.params["point"]["kind"] == "plane"
        assert (training["lr"], training["steps"]) == ((0.001, 7) if plane else (0.01, 12))


@pytest.mark.parametrize(
    ("protocol", "change", "message"),
    [
        ("pairs", {"thresholds": [0]}, "thresholds"),
        ("anomalies", {"budget": [1]}, "did you mean 'budgets'"),
        ("training", {"steps": 0}, "steps"),
    ],
)
def test_settings_that_are_not_allowed(protocol: str, change: dict[str, Any], message: str) -> None:
    settings = json.loads(json.dumps(read_scale(toys.CONFIG, "smoke")))
    settings[protocol].update(change)
    with pytest.raises(ConfigError, match=message):
        toys.read_config(settings)


def test_every_scale_plans_distinct_cells() -> None:
    for scale in ("small", "paper", "smoke"):
        config = toys.read_config(read_scale(toys.CONFIG, scale))
        names = [cell.name for protocol in toys.PROTOCOLS for cell in config.cells(protocol)]
        assert len(set(names)) == len(names)
        if scale != "smoke":
            assert len(config.seeds) >= 5
