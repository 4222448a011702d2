"""The scaling benchmark runs, measures what it names, and writes it three ways."""

import csv
from pathlib import Path

import pytest

from recipes.speed import scaling
from sae_lens_bipolar.files.atomic import read_json

SMALL = ["--d-in", "32", "--batch", "64", "--steps", "1", "--k-d-sae", "512", "--d-sae-k", "8"]
STEPS = [*SMALL, "--d-sae", "256", "512", "--k", "4", "8"]


def test_steps_of_every_size_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    scaling.main([*STEPS, "--no-memory", "--job-d-sae", "--output", str(tmp_path)])
    found = read_json(tmp_path / "results/scaling.json")
    sizes = [(row["d_sae"], row["k"]) for row in found["steps"]]
    assert sizes == [(256, 8), (512, 8), (512, 4)]
    assert found["jobs"] == []
    lines = list(csv.DictReader((tmp_path / "report/scaling.csv").open()))
    assert len(lines) == 3 * 3
    for line in lines:
        assert 0 < float(line["min"]) <= float(line["median"]) <= float(line["max"])
    assert (tmp_path / "report/scaling.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out == (tmp_path / "report/scaling.csv").read_text()
    assert read_json(tmp_path / "environment.json")["command"].startswith("python -m recipes.speed")


def test_memory_is_that_of_a_process_of_its_own() -> None:
    pytest.importorskip("psutil")
    shape = scaling.Shape(32, 512, 8, 64)
    assert 0 < scaling._memory("our abstopk", shape, scaling.Sizes()) < 2**31


def test_whole_runs_are_timed_with_both_arithmetics(monkeypatch, tiny_model_dirs) -> None:
    monkeypatch.setattr(scaling, "DEFAULT_MODEL", str(tiny_model_dirs["gpt2"]))
    monkeypatch.setattr(scaling, "HOOK", "blocks.1.hook_resid_post")
    sizes = scaling.Sizes(job_d_sae=[48, 96], job_tokens=512, job_batch=64, d_sae_k=4)
    rows = scaling.measure_job(sizes)
    assert [row["d_sae"] for row in rows] == [48, 96]
    for row in rows:
        assert all(0 < speed < row["reading_alone"] for speed in row["tokens_per_second"].values())


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--d-sae", "0"], ["--k", "-1"]])
def test_sizes_that_are_not_allowed(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        scaling.main([*wrong, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
