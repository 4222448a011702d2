"""Every case that went wrong before goes right now; `python -m tests.cases` prints the table."""

import json
from pathlib import Path

import pytest

from tests.cases.__main__ import BEFORE
from tests.cases.place import Place
from tests.cases.table import CASES, Case

QUICK = ("link_that_leaks", "no_dataset_path", "code_in_the_card", "other_weights", "yaml_bomb")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    import sae_lens_bipolar.cli.train
    import sae_lens_bipolar.hub.publishing
    import sae_lens_bipolar.reports  # noqa: F401

    return Place(tmp_path_factory.mktemp("cases"))


def of(case: Case) -> object:
    marks = () if case.name in QUICK else (pytest.mark.slow,)
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", map(of, CASES))
def test_what_went_wrong_before_is_right_now(case: Case, place: Place) -> None:
    seen, is_right = case.see(place)
    assert is_right, f"{case.what}: {seen}; right: {case.right}"


def test_each_case_was_seen_to_go_wrong() -> None:
    before = json.loads(Path(BEFORE).read_text())
    assert len(before["commit"]) >= 7
    assert {case.name for case in CASES} == before["cases"].keys()
    fine = [name for name, found in before["cases"].items() if found["right"]]
    assert not fine, f"these were right already: {fine}"
