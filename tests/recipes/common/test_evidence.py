"""The line over the verdicts of a run."""

from pathlib import Path

from recipes.common.evidence import CELL_SECONDS, note, write_train_seconds
from sae_lens_bipolar.files.atomic import write_json


def run_of(scale: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"scale: {scale}")
    return folder


def test_evidence_names_its_command_its_machine_and_its_time(tmp_path: Path) -> None:
    run = run_of("medium", tmp_path / "run")
    machine = {"device": "cpu", "processor": "Acme 9", "cores": 2}
    write_json(run / "environment.json", {"command": "python -m recipes.x", **machine})
    cells = {
        "seed0": [{"name": "a", "train_seconds": 1800.04}, {"name": "b", "train_seconds": 900.0}],
        "seed1": [{"name": "a", "train_seconds": 2700.0}],
    }
    write_train_seconds(run, cells)
    assert note("medium/sagsae/cells", run) == (
        "*Evidence (scale `medium`); `python -m recipes.x`; Acme 9, 2 cores; training steps took "
        "1.5 hours.*\n\n"
    )
    write_json(run / "environment.json", {"command": "c", **machine, "device": "NVIDIA H200"})
    assert "; NVIDIA H200, 2 cores; " in note("medium/sagsae/cells", run)


def test_only_a_recipe_that_has_evidence_has_smoke_tests(tmp_path: Path) -> None:
    small = run_of("small", tmp_path / "run")
    assert note("sagsae/cells", small).startswith("*Smoke test")
    assert note("sagsae/toys", small) == ""
    assert note("sagsae/cells", run_of("paper", tmp_path / "paper")) == ""


def test_evidence_that_trains_nothing_names_its_time_too(tmp_path: Path) -> None:
    run = run_of("medium", tmp_path / "run")
    write_json(run / CELL_SECONDS, {"a": 1000.0, "b": 800.0})
    assert (
        note("medium/sagsae/census", run) == "*Evidence (scale `medium`); it took 0.5 hours.*\n\n"
    )
