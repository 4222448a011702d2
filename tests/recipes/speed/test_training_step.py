"""The benchmark of the training step runs, adds up, and writes what it measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from recipes.speed import training_step
from recipes.speed.contestants import SHAPES, Options, comparisons
from recipes.speed.report import line_of_comparison
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.sparse.products import Products


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = ["--output", str(tmp_path)]
    training_step.main(["--shapes", "tiny", "--steps", "3", "--no-memory", "--l0", "16", *files])
    (shape,) = read_json(tmp_path / "results/training_step.json")
    environment = read_json(tmp_path / "environment.json")
    assert environment["command"].startswith("python -m recipes.speed.training_step --shapes tiny")
    assert environment["products"]["speedup"] > 0
    assert (tmp_path / "config.yaml").is_file()
    assert (shape["name"], shape["d_sae"], shape["batch"]) == ("tiny", 1024, 128)
    wanted = [list(pair) for pair in comparisons()]
    if "eai-sparsify" not in environment["versions"]:
        wanted = [pair for pair in wanted if "eai-sparsify" not in pair]
    assert [[c["ours"], c["reference"]] for c in shape["comparisons"]] == wanted
    for c in shape["comparisons"]:
        ours, reference = c["seconds"][c["ours"]], c["seconds"][c["reference"]]
        assert 0 < ours["min"] <= ours["median"] <= ours["max"]
        assert reference["min"] / ours["max"] <= c["speedup"]["median"]
        assert c["speedup"]["median"] <= reference["max"] / ours["min"]
        assert c["over_encoder"]["min"] > 0
        wanted_l0 = 16 if "gated" in c["ours"] else 8
        assert c["l0"] == pytest.approx(wanted_l0, rel=0.3)
    assert len(capsys.readouterr().out.splitlines()) == len(wanted)
    assert (tmp_path / "report/training_step.png").read_bytes()[:4] == b"\x89PNG"


def test_where_products_are_replaced_both_contestants_are_timed_with_them(monkeypatch) -> None:
    options = Options(steps=2)
    shape = SHAPES["tiny"]
    same = Products(speedup=1.0, error=3e-7, own_error=3e-7)
    for found in (same, replace(same, speedup=2.0)):
        monkeypatch.setattr(training_step, "choice", lambda found=found: found)
        row = training_step.compare("our abstopk", "SAELens abstopk", shape, options)
        assert ("SAELens abstopk, same products" in row["seconds"]) == found.used
        assert ("speedup_same_products" in row) == found.used
        assert ("same products" in line_of_comparison("tiny", row)) == found.used


def test_only_some_contestants(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["our abstopk", "SAELens abstopk"]
    training_step.main(["--shapes", "tiny", "--steps", "1", "--no-memory", "--only", *names])
    (line,) = capsys.readouterr().out.splitlines()
    assert all(name in line for name in names)


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    pytest.importorskip("psutil")
    size = training_step.memory_in_new_process("our abstopk", "tiny", training_step.Options())
    assert 0 < size < 2**31


def test_a_batch_in_place_of_the_shapes_own(tmp_path: Path) -> None:
    arguments = ["--shapes", "tiny", "--steps", "1", "--batch", "70", "--only", "our abstopk"]
    training_step.main([*arguments, "--output", str(tmp_path)])
    (shape,) = read_json(tmp_path / "results/training_step.json")
    assert shape["batch"] == 70


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--batch", "0"], ["--shapes", "huge"]])
def test_options_that_are_not_allowed(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        training_step.main(arguments)
