"""The table of defaults: who is compared with whom, and which bars are met."""

import csv
from pathlib import Path
from typing import Any

import pytest

from recipes.defaults import table
from recipes.defaults.figure import draw

HOOK = "blocks.12.hook_mlp_out"


def row(name: str, settings: str = "plain", **changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "hook_name": HOOK, "settings": settings, "number": "k"}
    made |= {"d_sae": 4608, "l0": 32.0, "r2": 0.73, "dead_fraction": 0.0, "bipolar_fraction": 1.0}
    return made | {"train_seconds": 1.0, "n_train_tokens": 100_000} | changed


def test_every_architecture_with_its_one_number_plain_and_tuned() -> None:
    found = table.contestants(HOOK, 32)
    plain = {name.removesuffix(".plain") for name in found if name.endswith(".plain")}
    assert plain > {"bi_jumprelu", "batch_abstopk", "unrolled_abstopk", "bi_topk"}
    assert set(found) == {f"{name}.{kind}" for name in plain for kind in ("plain", "tuned")}
    for name, sae in found.items():
        config: Any = sae.config(d_in=576)
        number = getattr(config, sae.tags["number"])
        assert (config.d_sae, number) == (4608, 32)
        scaled = config.normalize_activations == "expected_average_only_in"
        assert scaled == name.endswith(".tuned")
    assert set(table.contestants(HOOK, 32, ["bi_topk"])) == {"bi_topk.plain", "bi_topk.tuned"}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, set()),
        ({"l0": 40.0}, set()),
        ({"l0": 40.1}, {"l0_met"}),
        ({"l0": 23.9}, {"l0_met"}),
        ({"dead_fraction": 0.2}, {"alive"}),
        ({"r2": 0.719}, {"near_best"}),
        ({"hook_name": "other", "r2": 0.1}, set()),  # whose tuned one missed its number
    ],
)
def test_the_bars(changed: dict[str, Any], missed: set[str]) -> None:
    others = [row("a.tuned", "tuned", r2=0.8), row("b.tuned", "tuned", r2=0.9)]
    others += [row("a.tuned", "tuned", r2=0.8, hook_name="other", l0=41.0)]
    judged = table.judge([*others, row("a.plain", **changed)], 32)[-1]
    found = {name for name in ("l0_met", "alive", "near_best") if judged[name] is False}
    assert found == missed
    line = table.markdown([judged])
    assert ("| met |" in line) is not bool(missed)
    assert all(name in line for name in missed)
    assert ("no tuned one" in line) == ("hook_name" in changed)


def test_r2_stands_beside_that_of_the_best_with_the_same_kind_of_number() -> None:
    others = [row("b.tuned", "tuned", r2=0.9), row("c.tuned", "tuned", r2=0.99, number="l0_target")]
    found = table.judge([*others, row("a.plain")], 32)[-1]
    assert found["r2_over_best"] == pytest.approx(0.73 / 0.9)
    assert found["r2_over_tuned"] is found["near_best"] is None
    assert "reference" in table.markdown(table.judge(others, 32))


def test_the_figure_shows_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("a.plain"), row("b.tuned", r2=0.5), row("a.plain", hook_name="other", l0=30.0)]
    draw(rows, 32, 0.25, 0.2, tmp_path)
    assert (tmp_path / "defaults.png").stat().st_size > 10_000
    lines = list(csv.reader((tmp_path / "defaults.csv").open()))
    assert lines[0] == ["sae", "hook", "l0", "r2", "dead_fraction"]
    assert lines[2] == ["b.tuned", HOOK, "32.0", "0.5", "0.0"]
    assert len(lines) == 4
