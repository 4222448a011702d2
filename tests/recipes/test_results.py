"""Committed results: one shape for every recipe, and what follows from their files still does."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.abstopk import figure1_report, figure4, table1_report, table2
from recipes.common.claims import CLAIMS
from recipes.common.evidence import MEDIUM
from recipes.sagsae import ablations_verdicts, cells_verdicts, census_verdicts
from recipes.sagsae.toys import __main__ as toys
from sae_lens_bipolar.files.atomic import read_json

RESULTS = Path(__file__).parents[2] / "recipes/results"
REPORTS: dict[str, Callable[[Path], str]] = {
    "abstopk/table1": table1_report.report,
    "abstopk/figure1": figure1_report.report,
    "abstopk/figure4": figure4.report,
    "abstopk/table2": table2.report,
    "sagsae/ablations": ablations_verdicts.report,
    "sagsae/cells": cells_verdicts.report,
    "sagsae/census": census_verdicts.report,
    "sagsae/toys": toys.report,
}
REPORTED = sorted(  # the scale `medium` lies in a folder of its own, laid out alike
    file.parents[1].relative_to(RESULTS).as_posix() for file in RESULTS.rglob(CLAIMS)
)
SPEED = [f"speed/{name}" for name in ("training_step", "scaling", "explorer", "gpu_check")]
RUNS = [*REPORTED, *SPEED, "defaults/table"]


def recipe_of(name: str) -> str:
    return name.removeprefix(f"{MEDIUM}/")


def test_every_verdict_file_has_its_report_tested() -> None:
    assert {name for name in REPORTED if recipe_of(name) == name} == set(REPORTS)
    assert {recipe_of(name) for name in REPORTED} <= set(REPORTS)


@pytest.mark.parametrize("name", RUNS)
def test_one_shape(name: str) -> None:
    """The folder is called as the module; it holds what a run directory holds, without cells."""
    run = RESULTS / name
    assert importlib.util.find_spec(f"recipes.{recipe_of(name).replace('/', '.')}")
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "results", "report")
    }
    texts = {".json", ".jsonl", ".csv", ".md"}
    for folder, allowed in (("results", texts), ("report", {".png", ".csv"})):
        files = [path for path in (run / folder).iterdir() if path.name != "generations"]
        assert {path.suffix for path in files} <= allowed


@pytest.mark.parametrize("name", REPORTED)
def test_every_committed_figure_has_its_data(name: str) -> None:
    figures = list((RESULTS / name / "report").glob("*.png"))
    assert figures
    assert all(figure.with_suffix(".csv").is_file() for figure in figures)


@pytest.mark.parametrize("name", REPORTED)
def test_reports_follow_from_the_committed_files(name: str, tmp_path: Path) -> None:
    """Claims, tables and figures' data, made anew from `results/`, are the committed ones."""
    pytest.importorskip("matplotlib")
    committed, run = RESULTS / name, tmp_path / "run"
    shutil.copytree(committed, run)
    shutil.rmtree(run / "report")
    (run / CLAIMS).unlink()
    REPORTS[recipe_of(name)](run)
    files = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    assert files == {path.relative_to(committed) for path in committed.rglob("*") if path.is_file()}
    for file in files:
        if file.suffix == ".json":
            assert_same(read_json(run / file), read_json(committed / file))
        elif file.suffix in (".csv", ".md"):
            assert_same(words(run / file), words(committed / file))


def words(file: Path) -> list[Any]:
    """The cells of a table, numbers as numbers."""
    text = file.read_text(encoding="utf-8").replace("|", ",").replace("\n", ",")
    return [number(word.strip()) for word in text.split(",")]


def number(word: str) -> Any:
    try:
        return float(word)
    except ValueError:
        return word


def assert_same(found: Any, committed: Any) -> None:
    """Equal, numbers to nine digits: numpy 1 and 2 interpolate to other last ones."""
    if isinstance(committed, dict):
        assert found.keys() == committed.keys()
        found, committed = list(found.values()), list(committed.values())
    if isinstance(committed, list):
        for one, other in zip(found, committed, strict=True):
            assert_same(one, other)
    elif isinstance(committed, float):
        assert found == pytest.approx(committed, rel=1e-9, abs=1e-12, nan_ok=True)
    else:
        assert found == committed
