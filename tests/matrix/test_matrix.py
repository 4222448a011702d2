"""The compatibility table is what `make test-matrix` found, for the versions allowed."""

import json
import re
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.matrix import run_matrix

HERE = Path(__file__).parent
RESULTS: dict[str, dict[str, Any]] = json.loads(run_matrix.RESULTS.read_text())


def pins(row: str) -> dict[str, str]:
    text = (HERE / f"{row}.txt").read_text()
    return dict(re.findall(r"^([a-z-]+)==(\S+)$", text, re.M))


def floor(package: str, text: str) -> Version:
    found = re.search(rf"\b{package}\s*\(?[^\"]*?>=([\d.]+)", text)
    assert found is not None
    return Version(found.group(1))


def test_the_documentation_shows_the_results() -> None:
    page = (HERE.parents[1] / "docs/compatibility.md").read_text(encoding="utf-8")
    assert run_matrix.table(RESULTS) in page


@pytest.mark.parametrize("row", run_matrix.ROWS)
def test_every_row_was_run_with_its_pins_and_passed(row: str) -> None:
    result = RESULTS[row]
    assert result["failed"] == 0
    assert result["passed"] > 1000
    assert result["versions"] | pins(row) == result["versions"]


def test_the_oldest_row_holds_the_floors() -> None:
    project = (HERE.parents[1] / "pyproject.toml").read_text()
    oldest = pins("oldest")
    assert Version(oldest["sae-lens"]) == floor("sae-lens", project)
    assert Version(oldest["transformers"]) == floor("transformers", project)
    host = next(one for one in requires("sae-lens") or () if one.startswith("transformer-lens"))
    assert Version(oldest["transformer-lens"]) == floor("transformer-lens", host)


def test_both_numpy_majors_are_covered() -> None:
    assert {pins(row)["numpy"].split(".")[0] for row in run_matrix.ROWS} == {"1", "2"}
