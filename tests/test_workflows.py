"""The workflows as GitHub would read them: pinned, of few rights, on every Python allowed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    text = request.param.read_text(encoding="utf-8")
    return text, yaml.load(text, Loader=yaml.BaseLoader)  # `on` stays a word


def test_actions_are_pinned_by_hash_with_their_version_beside(
    workflow: tuple[str, dict[str, Any]],
) -> None:
    text, parsed = workflow
    lines = [line.strip(" -") for line in text.splitlines() if "uses:" in line]
    steps = [step for job in parsed["jobs"].values() for step in job["steps"]]
    assert len(lines) == sum("uses" in step for step in steps) > 0
    for line in lines:
        pinned = r"uses: [\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # (v\d+(\.\d+)+|release/v\d+)"
        assert re.fullmatch(pinned, line), line


# What publishing without a token of ours needs; these jobs run no code of the repository.
RIGHTS = {"pages": "write", "id-token": "write"}


def test_no_more_rights_than_reading(workflow: tuple[str, dict[str, Any]]) -> None:
    text, parsed = workflow
    assert parsed["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in parsed["on"]
    assert "secrets." not in text
    assert "concurrency" in parsed
    for name, job in parsed["jobs"].items():
        if "permissions" in job:
            assert name == "publish"
            assert job["permissions"].items() <= RIGHTS.items()
            assert not any("run" in step for step in job["steps"])
            assert "pull_request" not in parsed["on"] or job["if"] == "github.event_name == 'push'"
        assert int(job["timeout-minutes"]) <= 90
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "a title of a pull request would be run"
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] == "false"
            if step.get("uses", "").startswith("actions/setup-python"):
                # A release is built without what other runs may have left in a cache.
                assert ("cache" in step["with"]) == (parsed["name"] != "release")


def test_every_python_that_is_allowed_is_tested() -> None:
    parsed = yaml.load((ROOT / ".github/workflows/ci.yml").read_text(), Loader=yaml.BaseLoader)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    classified = re.findall(r"Python :: (3\.\d+)", project)
    assert parsed["jobs"]["test"]["strategy"]["matrix"]["python"] == classified
    assert "make test" in [step.get("run") for step in parsed["jobs"]["test"]["steps"]]
    assert "whl/cpu" in parsed["env"]["PIP_EXTRA_INDEX_URL"]


def test_every_target_a_workflow_makes_is_in_the_makefile(
    workflow: tuple[str, dict[str, Any]],
) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    runs = [s["run"] for job in workflow[1]["jobs"].values() for s in job["steps"] if "run" in s]
    for words in (run.split() for run in runs if run.startswith("make ")):
        assert {word for word in words[1:] if "=" not in word} <= targets
