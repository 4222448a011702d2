"""Every recipe is run by its module's name; its files and the README open with such commands."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.common.arguments import command, parse
from sae_lens_bipolar.errors import BipolarError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "abstopk.figure1",
    "abstopk.figure3",
    "abstopk.figure4",
    "abstopk.table1",
    "abstopk.table2",
    "common.claims",
    "common.labelled_text",
    "defaults.table",
    "sagsae.ablations",
    "sagsae.cells",
    "sagsae.census",
    "sagsae.toys",
    "speed.cached_activations",
    "speed.explorer",
    "speed.gpu_check",
    "speed.gpu_report",
    "speed.scaling",
    "speed.training_step",
)
CONFIGS = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "results" not in path.parts)


def main_of(name: str) -> Callable[[list[str]], None]:
    module = f"recipes.{name}"
    package = importlib.util.find_spec(module)
    assert package is not None
    folder = package.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if folder else module).main


def test_every_module_with_a_main_is_listed() -> None:
    found = {
        ".".join(path.relative_to(ROOT / "recipes").with_suffix("").parts).removesuffix(".__main__")
        for path in (ROOT / "recipes").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert found == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main_of(name)(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m recipes.{name} ")


@pytest.mark.parametrize("name", ["sagsae.toys", "common.claims"])
def test_from_a_clone_without_any_path_set(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    line = [sys.executable, "-m", f"recipes.{name}", "--help"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m recipes.{name} ")


def test_parsers_are_made_in_one_place() -> None:
    wrong = [
        path
        for path in (ROOT / "recipes").rglob("*.py")
        if re.search(r"^(import|from) argparse", path.read_text(encoding="utf-8"), re.M)
    ]
    assert wrong == [ROOT / "recipes/common/arguments.py"]


def test_the_command_can_be_pasted_and_holds_no_token() -> None:
    parser = command("paper.artefact", "what it does")
    parser.add_argument("--cells")
    options = parse(parser, ["--cells", "*seed0"])
    assert options.command == "python -m recipes.paper.artefact --cells '*seed0'"
    assert options.recipe == "paper.artefact"
    token = "hf_" + "a" * 34
    assert token not in parse(parser, ["--cells", token]).command


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_of_scales_opens_with_the_commands_that_run_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    head = text[: text.index("\nsmall:")].replace("\\\n#", "")
    commands = re.findall(r"^#   python -m recipes\.(\S+) (.*)", head, re.M)
    assert {f"recipes/{name.replace('.', '/')}" for name, _ in commands} <= {
        str(file.relative_to(ROOT).with_suffix("")),
        str(file.relative_to(ROOT).parent),  # a package with __main__
    }
    assert any("--scale paper" in options for _, options in commands)
    assert any("--scale" not in options for _, options in commands)  # `small` is the default
    assert all("--output" in options for _, options in commands)


@pytest.mark.parametrize(
    "file",
    [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
        *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
    ],
)
def test_commands_in_prose_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not re.findall(r"python recipes/\S+", text)
    for name in re.findall(r"python -m recipes\.([a-z0-9_.]+[a-z0-9])", text):
        assert name in COMMANDS, name


@pytest.mark.parametrize("name", ["abstopk.figure4", "sagsae.cells", "sagsae.toys"])
def test_an_unknown_scale_is_refused_with_the_nearest_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(BipolarError, match="did you mean 'paper'"):
        main_of(name)(["--scale", "papr", "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
