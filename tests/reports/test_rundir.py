"""Reading a run directory: what is absent is named, what is malformed is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.reports.rundir import find_setting, read_run
from tests.reports.synthetic_run import ARCHITECTURES, change, make_run

FILES = ("config.yaml", "environment.json", "metrics.jsonl", "results/summary.json")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", d_sae=24, steps=5, latents=3)


def test_everything_is_read(run_dir: Path):
    run = read_run(run_dir)
    assert run.sae_names() == list(ARCHITECTURES)
    assert run.missing == ()
    assert len(run.metrics) == 5 * len(ARCHITECTURES)
    assert set(run.census) == set(run.latents) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FILES)
def test_an_absent_file_is_named(run_dir: Path, name: str):
    (run_dir / name).unlink()
    assert read_run(run_dir).missing == (name,)


@pytest.mark.parametrize("name", ["results/census", "results/latents"])
def test_an_absent_folder_is_named(run_dir: Path, name: str):
    shutil.rmtree(run_dir / name)
    assert read_run(run_dir).missing == (f"{name}/*.json",)


def test_a_directory_without_results_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no results: expected metrics\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="is not a directory"):
        read_run(tmp_path / "none")


@pytest.mark.parametrize("name", [*FILES, "results/census/topk.json", "results/latents/topk.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[1,\n"])
def test_an_empty_or_broken_file_is_refused_by_name(run_dir: Path, name: str, content: bytes):
    # A newline at the end: the last line of metrics.jsonl is whole, not cut off.
    (run_dir / name).write_bytes(content + b"\n" * (name == "metrics.jsonl"))
    with pytest.raises(DataError, match=name.rsplit("/", 1)[-1].replace(".", r"\.")):
        read_run(run_dir)


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return edit


def _drop(*path: Any) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return edit


CONTEXT = ("latents", 0, "contexts", "positive", 0)
MALFORMED = [
    ("environment.json", _set("packages", to=[]), r"environment\.json: packages: expected an obj"),
    ("results/summary.json", lambda rows: rows.clear(), r"summary\.json: holds no SAE"),
    ("results/summary.json", _drop(1, "nmse"), r"summary\.json\[1\]: key 'nmse' is missing"),
    ("results/summary.json", _set(0, "l0", to="64"), r"\[0\]: 'l0' is a string; expected a numb"),
    ("results/summary.json", _set(0, "l0", to=True), r"\[0\]: 'l0' is a boolean"),
    ("results/summary.json", _set(2, "with_sinks", to=3), r"\[2\]\.with_sinks: expected an object"),
    ("results/summary.json", _drop(0, "with_sinks", "r2"), r"with_sinks: key 'r2' is missing"),
    ("results/summary.json", _set(1, "name", to="topk"), "name 'topk' stands for more than one"),
    ("results/census/topk.json", _drop("n_tokens"), r"topk\.json: key 'n_tokens' is missing"),
    ("results/census/topk.json", _drop("negative_rate"), "key 'negative_rate' is missing"),
    ("results/census/topk.json", _drop("negative_rate", 3), "negative_rate has 23 values"),
    ("results/census/topk.json", _set("positive_rate", 2, to=1.5), r"positive_rate\[2\] is 1\.5"),
    ("results/census/topk.json", _set("positive_max", 2, to=None), r"positive_max\[2\] is null"),
    ("results/latents/topk.json", _drop("latents"), r"topk\.json: key 'latents' is missing"),
    ("results/latents/topk.json", _drop("latents", 1, "index"), r"latents\[1\]: key 'index'"),
    (
        "results/latents/topk.json",
        _drop("latents", 0, "histogram", "edges", 0),
        r"histogram: 40 edges for 40 counts",
    ),
    (
        "results/latents/topk.json",
        _set("latents", 0, "histogram", "edges", 5, to=-1.0),
        "edges do not increase",
    ),
    ("results/latents/topk.json", _drop(*CONTEXT, "tokens", 0), "tokens and .* activations"),
    ("results/latents/topk.json", _set(*CONTEXT, "peak", to=10_000), r"peak is 10000; expected"),
    ("results/latents/topk.json", _set(*CONTEXT, "tokens", 3, to=7), r"tokens\[3\] is a number"),
    ("results/latents/topk.json", _set("latents", 0, "raises", to=["a"]), r"raises\[0\] is 'a'"),
    (
        "results/latents/topk.json",
        _set("latents", 0, "lowers", 0, to=["a", float("nan")]),
        r"lowers\[0\]\[1\] is nan; expected a finite number",
    ),
]


@pytest.mark.parametrize(("name", "edit", "message"), MALFORMED)
def test_a_malformed_value_is_refused_by_file_and_key(
    run_dir: Path, name: str, edit: Callable[[Any], None], message: str
):
    change(run_dir / name, edit)
    with pytest.raises(DataError, match=message) as caught:
        read_run(run_dir)
    assert str(run_dir / name) in str(caught.value)


def test_a_line_of_metrics_without_a_key_is_refused_by_number(run_dir: Path):
    file = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    del lines[2]["n_tokens"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 3: key 'n_tokens' is missing"):
        read_run(run_dir)


def test_a_last_line_cut_off_is_left_out_and_said(run_dir: Path):
    file = run_dir / "metrics.jsonl"
    whole = read_run(run_dir).metrics
    file.write_text(file.read_text() + '{"step": 60, "n_tok')
    run = read_run(run_dir)
    assert run.metrics == whole
    assert run.notes == ("metrics.jsonl: line 21 was cut off while being written; left out",)


def test_a_step_logged_again_after_resuming_replaces_the_first(run_dir: Path):
    file = run_dir / "metrics.jsonl"
    again = {**json.loads(file.read_text().splitlines()[0]), "nmse": 0.5}
    file.write_text(file.read_text() + json.dumps(again) + "\n")
    run = read_run(run_dir)
    assert len(run.metrics) == 20
    assert run.metrics[0]["step"] == 10
    assert [x["nmse"] for x in run.metrics if x["sae"] == "topk" and x["step"] == 10] == [0.5]


def test_null_where_nothing_could_be_measured_is_read(run_dir: Path):
    change(run_dir / "results/summary.json", _set(0, "bipolar_fraction", to=None))
    assert read_run(run_dir).summary[0]["bipolar_fraction"] is None


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"a": {"k": 3}, "saes": [{"k": 5}, {"k": 3}, {"k": None}]}, [3, 5]),
        ({"a": {"k": 3}, "l0_target": 64}, [64]),
        ({"l0_target": None, "k": 7}, [7]),
        ({"x": 1}, []),
    ],
)
def test_settings_are_found_wherever_they_are_nested(config: dict[str, Any], found: list[int]):
    assert find_setting(config, "l0_target", "k") == found
