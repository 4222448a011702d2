"""Output directories: somebody's folder is never taken for a run."""

import json
from pathlib import Path

import pytest

from sae_lens_bipolar.cli.demonstration import DemoConfig, run_demo
from sae_lens_bipolar.errors import ConfigError, UnsafePathError
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE, MARKER
from sae_lens_bipolar.files.outputs import (
    claim_output,
    is_ours,
    mark,
    require_output,
    require_replaceable,
)
from tests.files.decoy import make_decoy, state

ENVIRONMENT = {
    "command": "sae-lens-bipolar demo",
    "seed": 0,
    "commit": None,
    "device": "cpu",
    "threads": 2,
    "cores": 2,
    "platform": "Linux",
    "python": "3.11.1",
    "packages": {"sae-lens": "6.54.12", "torch": "2.9"},
}


def test_new_and_empty_directories_are_claimed_and_stay_ours(tmp_path: Path) -> None:
    for path in (tmp_path / "new" / "deep", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        claim_output(path)
        (path / "progress").mkdir()
        assert is_ours(path)
        claim_output(path)


def test_what_a_lock_leaves_does_not_make_a_directory_full(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with lock_run(tmp_path / "out"):
        claim_output(tmp_path / "out")
    (tmp_path / "out" / MARKER).unlink()
    claim_output(tmp_path / "out")


def test_a_folder_of_somebody_is_refused_untouched(tmp_path: Path) -> None:
    decoy = make_decoy(tmp_path / "victim")
    before = state(decoy)
    for check in (require_output, claim_output):
        with pytest.raises(ConfigError, match="is not a run of this package and not empty"):
            check(decoy)
    assert state(decoy) == before


@pytest.mark.parametrize("name", [CONFIG_FILE, ENVIRONMENT_FILE])
def test_one_file_with_a_name_of_ours_does_not_make_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(ENVIRONMENT))
    with pytest.raises(ConfigError, match="not empty"):
        require_output(tmp_path)


@pytest.mark.parametrize(
    "environment", ["{}", "[1]", "{", "", json.dumps({**ENVIRONMENT, "packages": {"numpy": "2"}})]
)
def test_other_projects_use_these_names_too(tmp_path: Path, environment: str) -> None:
    (tmp_path / CONFIG_FILE).write_text("seed: 0\n")
    (tmp_path / ENVIRONMENT_FILE).write_text(environment)
    with pytest.raises(ConfigError, match="not empty"):
        require_output(tmp_path)


def test_a_run_from_before_the_marker_is_recognised(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("seed: 0\n")
    (tmp_path / ENVIRONMENT_FILE).write_text(json.dumps(ENVIRONMENT))
    (tmp_path / "progress").mkdir()
    require_output(tmp_path)
    claim_output(tmp_path)
    assert (tmp_path / MARKER).is_file()


def test_a_marker_or_environment_behind_a_link_does_not_count(tmp_path: Path) -> None:
    claim_output(tmp_path / "ours")
    make_decoy(tmp_path / "victim")
    (tmp_path / "victim" / MARKER).symlink_to(tmp_path / "ours" / MARKER)
    assert not is_ours(tmp_path / "victim")


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for path in ("file", "file/run/deep", "dangling"):
        with pytest.raises(ConfigError, match="is not a directory"):
            require_output(tmp_path / path)
    with pytest.raises(ConfigError, match="empty name"):
        require_output("")
    assert (tmp_path / "file").read_text() == "x"
    assert not (tmp_path / "none").exists()


def test_demo_on_a_folder_of_somebody_touches_nothing(tmp_path: Path) -> None:
    decoy = make_decoy(tmp_path / "victim")
    before = state(decoy)
    with pytest.raises(ConfigError, match="is not a run of this package"):
        run_demo(DemoConfig(), decoy)
    assert state(decoy) == before


def test_a_fixed_folder_is_replaced_only_if_it_is_ours(tmp_path: Path) -> None:
    require_replaceable(tmp_path / "publish")
    (tmp_path / "publish").mkdir()
    require_replaceable(tmp_path / "publish")
    (tmp_path / "publish" / "mine.txt").write_text("x")
    with pytest.raises(UnsafePathError, match="publish was not made by this package"):
        require_replaceable(tmp_path / "publish")
    mark(tmp_path / "publish")
    require_replaceable(tmp_path / "publish")
    claim_output(tmp_path / "run")
    (tmp_path / "run" / "report").mkdir()
    (tmp_path / "run" / "report" / "index.html").write_text("x")
    require_replaceable(tmp_path / "run" / "report")
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafePathError, match="is a link"):
        require_replaceable(tmp_path / "run" / "link")
