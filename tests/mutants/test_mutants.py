"""The runner does change code, does see which test notices, and does see when none does."""

import ast
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.mutants import __main__ as command
from tests.mutants import selection, trials
from tests.mutants.mutations import MODULE, Mutant, mutants_of, mutated

LIMITS = '''"""A module with a test that misses a bound."""

FACTOR = 3


def passes(score: float, limit: float | None = None) -> bool:
    """Whether `score` reaches the limit, 1 if there is none."""
    return score >= (1 if limit is None else limit)


def scaled(values: list[float]) -> float:
    if not values:
        raise ValueError(f"no values: {1 + 1}")
    return FACTOR * sum(values)


def counted(n: int) -> int:
    steps = 0
    while n > 0:
        n -= 1
        steps += 1
    return steps
'''
TESTS = """
import subprocess

from planted.limits import counted, passes, scaled


def test_passes():
    assert passes(3, 2) and passes(2) and not passes(1, 2) and not passes(0)


def test_scaled():
    assert scaled([1, 2]) == 9


def test_counted():
    assert counted(3) == 3


def test_in_a_process_of_its_own():
    assert counted(1) == 1
    assert subprocess.run(["true"]).returncode == 0
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "limits.py").write_text(LIMITS)
    (tmp_path / "test_planted.py").write_text(TESTS)
    monkeypatch.setattr(selection, "ROOT", tmp_path)
    monkeypatch.setattr(trials, "_LEAST_PATIENCE", 0.5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "planted/limits.py"


def test_a_missed_bound_survives_and_the_rest_is_killed(planted: str) -> None:
    baseline, _ = trials.measure("test_planted.py", [planted])
    assert "test_planted.py::test_in_a_process_of_its_own" not in baseline
    assert [planted, "passes"] in baseline["test_planted.py::test_passes"]["entered"]
    assert [planted, "passes"] not in baseline["test_planted.py::test_scaled"]["entered"]
    wanted = (
        *("score >= (1 if limit is None else limit) => score > (1 if limit is None else limit)",),
        *("score >= (1 if limit is None else limit) => score < (1 if limit is None else limit)",),
        *("FACTOR * sum(values) => FACTOR", "FACTOR = 3 => FACTOR = 4"),
        *("n -= 1 => n += 1", "n > 0 => n > 1"),
    )
    found: dict[str, dict[str, Any]] = {}
    for mutant in mutants_of(LIMITS, planted):
        change = f"{mutant.before} => {mutant.after}"
        if change in wanted:
            found[change] = trials.verdict(mutant, baseline)
    assert [found[change]["outcome"] for change in wanted] == [
        *("survived", "killed", "killed", "killed", "timeout", "killed")
    ]
    assert found[wanted[1]]["by"] == "test_planted.py::test_passes"
    assert found[wanted[1]]["tests"] == 1, "only those that enter the function"
    assert found[wanted[3]]["tests"] == 3, "of what is outside of functions, all"


SPARED = '''
"""Docstring 1."""
import logging
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)
Number: TypeAlias = "int" or float


class A(dict[int, Any], metaclass=type(1)):
    size: int | None

    @property
    def name(self, other: int | None) -> float | None:
        """Returns 1 + 1."""
        assert 1 + 1 == 2, "text" + "more"
        logger.warning("of %d", 1 + 1)
        isinstance(self, int | float)
        list(zip([], [], strict=True))
        raise ValueError(1 + 1)
'''


def test_messages_annotations_and_checks_of_types_are_spared() -> None:
    found = {mutant.before for mutant in mutants_of(SPARED, "a.py")}
    assert found == {
        *('"int" or float'.replace('"', "'"), "isinstance(self, int | float)"),
        "list(zip([], [], strict=True))",
    } - {"'int' or float"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a + b", {"a - b", "a"}),
        ("a @ b", set()),
        ("'a' + b", set()),
        ("-a", {"a"}),
        ("not a", {"a"}),
        ("a and b", {"a or b", "a", "b"}),
        ("a if b else c", {"c if b else a"}),
        ("f(x=0)", {"f(x=1)"}),
        ("f(x=1)", {"f(x=2)", "f(x=0)"}),
        ("f(True)", {"f(False)"}),
        ("f(0.5)", {"f(1.0)"}),
        ("x.sum(-1)", {"x.mean(-1)", "x.sum(1)", "x.sum(-2)", "x.sum(-0)"}),
        ("x.detach()", {"x"}),
        ("torch.exp(x)", set()),
        ("min(a, b)", {"max(a, b)", "min(b, a)"}),
        ("torch.where(a, b, c)", {"torch.where(a, c, b)"}),
        ("f(a, b.c)", set()),
        ("[x for x in a if x]", {"[x for x in a]"}),
        ("int(a * k)", {"round(a * k)", "int(a / k)", "int(a)"}),
    ],
)
def test_what_can_be_changed(before: str, after: set[str]) -> None:
    found = mutants_of(f"y = {before}", "a.py")
    whole = {ast.unparse(mutated(f"y = {before}", mutant)) for mutant in found}
    assert whole == {f"y = {text}" for text in after}


def test_statements_that_do_something_are_left_out_one_at_a_time() -> None:
    source = "def f(x):\n    x.mul_(2)\n    x += a\n    if x:\n        g(x)\n"
    found = {ast.unparse(mutated(source, m)) for m in mutants_of(source, "a.py")}
    for line in ("x.mul_(2)", "x += a", "g(x)"):
        assert ast.unparse(ast.parse(source.replace(line, "pass"))) in found
    assert ast.unparse(ast.parse(source.replace("if x", "if not x"))) in found


def test_keys_are_of_one_mutant_each_and_stay_when_lines_move() -> None:
    before = mutants_of(LIMITS, "a.py")
    moved = LIMITS.replace("def scaled", "# A comment.\n\n\ndef scaled")
    after = mutants_of(moved, "a.py")
    assert [m.key for m in before] == [m.key for m in after]
    assert len({m.key for m in before}) == len(before)
    assert {m.function for m in before} == {MODULE, "passes", "scaled", "counted"}


def test_the_sample_is_even_and_always_the_same() -> None:
    every = [
        mutant
        for file, repeated in (("a.py", 1), ("b.py", 4))
        for mutant in mutants_of(
            LIMITS.replace("    steps = 0\n", "    steps = 0\n" * repeated), file
        )
    ]
    chosen = selection.sample(every, 10, seed=0)
    assert Counter(mutant.file for mutant in chosen) == {"a.py": 5, "b.py": 5}
    assert selection.sample(every[::-1], 10, seed=0) == chosen
    assert selection.sample(every, 10, seed=1) != chosen
    assert set(selection.sample(every, 10_000, seed=0)) == set(every)


def test_every_module_has_mutants_or_nothing_to_change_and_tests() -> None:
    modules = selection.modules()
    assert len(modules) > 40
    for module in modules:
        assert (selection.ROOT / module).is_file()
        assert selection.tests_for(module), module
    assert len(selection.all_mutants()) > 3000


def test_accepted_survivors_have_a_reason_each() -> None:
    accepted = yaml.safe_load(command.EQUIVALENT.read_text(encoding="utf-8")) or {}
    for key, reason in accepted.items():
        assert key.count(" | ") >= 2, key
        assert len(reason) > 20, key


@pytest.mark.parametrize(
    ("outcomes", "accepted", "status"),
    [
        (["killed"] * 20, [], 0),
        (["killed"] * 18 + ["timeout", "survived"], [19], 0),
        (["killed"] * 19 + ["survived"], [], 1),  # without a reason
        (["killed"] * 18 + ["survived"] * 2, [18, 19], 1),  # too many
        (["killed"] * 19 + [None], [], 1),  # not run
    ],
)
def test_the_summary(
    outcomes: list[str | None],
    accepted: list[int],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mutants = [Mutant("a.py", "f", "x", f"y{i}", 1, 1, 1, 0) for i in range(20)]
    rows = {m.key: {"outcome": o} if o else None for m, o in zip(mutants, outcomes, strict=True)}
    file = tmp_path / "equivalent.yaml"
    file.write_text(
        yaml.safe_dump({mutants[i].key: "because it is" for i in accepted} | {"z": "y"})
    )
    monkeypatch.setattr(command, "EQUIVALENT", file)
    results: Any = SimpleNamespace(of=lambda mutant: rows[mutant.key])
    assert command._report(mutants, mutants, results) == status
    text = capsys.readouterr().out
    assert "no longer there, take it out of equivalent.yaml: z" in text
    for i, outcome in enumerate(outcomes):
        shown = "equivalent" if i in accepted else "SURVIVED"
        assert (f"{shown}: line 1 of {mutants[i].key}\n" in text) == (outcome == "survived")


def test_results_are_kept_while_they_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "ROOT", tmp_path)
    (tmp_path / "sae_lens_bipolar/sparse").mkdir(parents=True)
    (tmp_path / "tests/sparse").mkdir(parents=True)
    module, test = tmp_path / "sae_lens_bipolar/sparse/a.py", tmp_path / "tests/sparse/test_a.py"
    module.write_text(LIMITS)
    test.write_text(TESTS)
    name = "sae_lens_bipolar/sparse/a.py"
    killed, survived = mutants_of(LIMITS, name)[:2]

    def results() -> command._Results:
        return command._Results(tmp_path / "results")

    first = results()
    first.add(killed, {"outcome": "killed"})
    first.add(survived, {"outcome": "survived"})
    assert [bool(results().of(mutant)) for mutant in (killed, survived)] == [True, True]
    module.write_text(LIMITS.replace("def scaled", "# a comment\ndef scaled"))
    assert [bool(results().of(mutant)) for mutant in (killed, survived)] == [True, True]
    test.write_text(TESTS + "# more\n")
    assert [bool(results().of(mutant)) for mutant in (killed, survived)] == [True, False]
    module.write_text(LIMITS.replace("FACTOR = 3", "FACTOR = 5"))
    assert [bool(results().of(mutant)) for mutant in (killed, survived)] == [False, False]
