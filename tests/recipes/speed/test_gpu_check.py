"""The check of a GPU runs to its end, also where a part of it fails, and on a CPU to try it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.speed import gpu_check, gpu_parts, gpu_report
from recipes.speed.contestants import SHAPES, SPARSIFY, Options
from recipes.speed.gpu_parts import FLOOR
from sae_lens_bipolar.files.atomic import read_json


def given(tmp_path: Path, *more: str) -> Any:
    line = ["--device", "cpu", "--shapes", "tiny", "--precisions", "bfloat16", "--steps", "1"]
    return gpu_check.parser().parse_args([*line, "--output", str(tmp_path / "run"), *more])


def test_a_part_that_fails_or_hangs_is_reported_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = [
        gpu_check.Part("fails", ("-c", "print('before'); raise SystemExit('told')"), 60),
        gpu_check.Part("hangs", ("-c", "import time; time.sleep(100)"), 0.5),
        gpu_check.Part("works", ("-c", "print('measured')"), 60),
    ]
    monkeypatch.setattr(gpu_check, "parts", lambda _: pieces)
    monkeypatch.setattr(gpu_check, "environment", lambda *_: {"command": "line"})
    line = ["--device", "cpu", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(line)
    assert ended.value.code == 1
    found = read_json(tmp_path / "run/results/gpu_check.json")
    assert [(p["name"], p["ended"], p["says"]) for p in found] == [
        ("fails", "failed", "told"),
        ("hangs", "out of time", ""),
        ("works", "done", "measured"),
    ]
    assert (tmp_path / "run/report/fails.txt").read_text().startswith("before")
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(gpu_check, "parts", lambda _: pieces[2:])
    gpu_check.main(line)  # all done: no exit code


def test_no_part_begins_after_the_time_is_up(tmp_path: Path) -> None:
    part = gpu_check.Part("late", ("-c", "1"), 60)
    ended = gpu_check.run_part(part, tmp_path, left=-1.0)
    assert ended["ended"] == "left out: no time was left"


def test_the_parts_cover_every_precision_and_shape(tmp_path: Path) -> None:
    names = [part.name for part in gpu_check.parts(given(tmp_path, "--shapes", "gpt2", "tiny"))]
    assert names == ["tests", "profile-tiny", "steps-gpt2-bfloat16", "steps-tiny-bfloat16", "tune"]
    limits = [part.limit for part in gpu_check.parts(given(tmp_path))]
    assert max(limits) <= 150


@pytest.mark.slow
def test_a_tiny_run_on_a_cpu(tmp_path: Path) -> None:
    """Whole, as on a GPU: tests that are all skipped, profile, steps, table."""
    options = given(tmp_path, "--tests", "tests/recipes/speed/test_gpu_check.py", "--minutes", "60")
    options.command = "line"
    gpu_check.check(options)
    results = tmp_path / "run/results"
    ended = {part["name"]: part["ended"] for part in read_json(results / "gpu_check.json")}
    tests = ended.pop("tests")
    assert tests == "failed"  # pytest's code 5: no test here is for a GPU
    assert set(ended.values()) == {"done"}, ended
    steps = read_json(results / "steps-tiny-bfloat16.json")
    assert steps["seconds"].keys() >= {"our abstopk (sparse)", "our abstopk (dense)", *FLOOR}
    assert steps["speedup"]["our abstopk (sparse)"]["SAELens abstopk"]["median"] > 0
    assert steps["speedup"]["our sign_aware_gated (dense)"].keys() == {"SAELens gated"}
    assert steps["over_floor"]["our abstopk (sparse)"]["min"] > 0
    assert set(steps["failed"]) <= {SPARSIFY}
    assert steps["extra_peak_bytes"].keys() >= {"our abstopk (sparse)", "SAELens abstopk"}
    profile = read_json(results / "profile-tiny-bfloat16.json")
    for rows in profile["microseconds_per_step"].values():
        assert rows[0]["microseconds"] >= rows[-1]["microseconds"] >= 0
    assert read_json(results / "tune.json")["rows"][0]["d_sae"] == 1024
    assert "| bfloat16 | tiny | our abstopk (sparse) | SAELens abstopk |" in (
        results / "gpu_check.md"
    ).read_text(encoding="utf-8")
    report = tmp_path / "run/report"
    assert {path.suffix for path in report.glob("gpu_check.*")} == {".csv", ".png"}


def test_a_contestant_that_fails_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    make_step = gpu_parts.make_step

    def fails(name: str, *rest: Any) -> Any:
        def step(x: torch.Tensor) -> Any:
            raise RuntimeError("told\nmore")

        return step if name == "our abstopk" else make_step(name, *rest)

    monkeypatch.setattr(gpu_parts, "make_step", fails)
    found = gpu_parts.steps(SHAPES["tiny"], "float32", Options(device="cpu", steps=1, l0=16))
    assert found["failed"]["our abstopk (dense)"] == "RuntimeError: told"
    assert "our abstopk (dense)" not in found["seconds"]
    assert found["over_floor"] == {}
    assert found["speedup"]["our sign_aware_gated (dense)"]["SAELens gated"]["median"] > 0


def test_a_report_needs_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_report.main(["--output", str(tmp_path)])
    assert "recipes.speed.gpu_check" in capsys.readouterr().err


def test_the_report_follows_from_the_committed_results(tmp_path: Path) -> None:
    committed = Path(__file__).parents[3] / "recipes/results/speed/gpu_check"
    shutil.copytree(committed / "results", tmp_path / "results")
    table = (tmp_path / "results/gpu_check.md").read_text(encoding="utf-8")
    (tmp_path / "results/gpu_check.md").unlink()
    gpu_report.main(["--output", str(tmp_path)])
    assert (tmp_path / "results/gpu_check.md").read_text(encoding="utf-8") == table
    for name in ("gpu_check.csv", "gpu_check.png"):
        assert (tmp_path / "report" / name).stat().st_size
    csv = (tmp_path / "report/gpu_check.csv").read_bytes()
    assert csv == (committed / "report/gpu_check.csv").read_bytes()
