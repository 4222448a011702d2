"""A stopped benchmark continues; finished runs are not redone, and nothing stale is read."""

import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import new_scratch
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.saebench import BenchConfig, bench, read_rows
from sae_lens_bipolar.saebench.results import CSV_FILE
from sae_lens_bipolar.saebench.store import SCRATCH
from sae_lens_bipolar.saebench.suites.registry import SUITES
from tests.hub.fake.clients import client_environment
from tests.hub.fake.server import HubServer
from tests.saebench.bench_children import BenchChildren
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config
from tests.saebench.suite_data import FORGET_TOKEN
from tests.tiny_models import write_text

KILLS = 24
KILLS_A_RUN = 6  # then it is left to end


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bench_model(tmp_path_factory.mktemp("resume") / "gpt2", "gpt2")


@pytest.fixture
def sae_path(model_dir: Path, tmp_path: Path) -> Path:
    return save_bench_sae(tmp_path / "abstopk", bench_sae("abstopk", model_dir))


def core(tmp_path: Path, **changes: Any) -> BenchConfig:
    text = tmp_path / "text.jsonl"
    if not text.exists():
        write_text(text)
    return tiny_config(**{"suites": ("core",), "core_dataset": str(text), **changes})


def stamps(output: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in (output / "saebench").rglob("*.json")}


def test_a_finished_run_is_not_redone_and_more_can_be_added(sae_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = bench([sae_path], output, core(tmp_path, protocols=("signed",)))
    before = stamps(output)
    both = bench([sae_path], output, core(tmp_path))
    after = stamps(output)
    assert {file: after[file] for file in before} == before
    assert len(after) == 2 * len(before)
    assert [row for row in both.rows if row["protocol"] == "signed"] == first.rows
    assert read_rows(output) == both.rows


def test_another_sae_of_the_same_name_is_refused(
    sae_path: Path, model_dir: Path, tmp_path: Path
) -> None:
    bench([sae_path], tmp_path / "out", core(tmp_path, protocols=("signed",)))
    save_bench_sae(sae_path, bench_sae("abstopk", model_dir, seed=1))
    with pytest.raises(ConfigError, match="another SAE under the name 'abstopk'"):
        bench([sae_path], tmp_path / "out", core(tmp_path, protocols=("signed",)))


def test_another_configuration_is_refused(sae_path: Path, tmp_path: Path) -> None:
    bench([sae_path], tmp_path / "out", core(tmp_path, protocols=("signed",)))
    with pytest.raises(ConfigError, match="seed: 42 there, 7 now"):
        bench([sae_path], tmp_path / "out", core(tmp_path, seed=7))


def test_what_a_killed_run_left_is_removed(sae_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    claim_output(output)  # a command was started here before
    stale = output / SCRATCH / "artifacts" / "unlearning"
    stale.mkdir(parents=True)
    (output / "saebench" / "core" / "signed").mkdir(parents=True)
    half = new_scratch(output / "saebench" / "core" / "signed" / "abstopk") / "abstopk"
    half.mkdir()
    (half / "run.json").write_text("{")
    bench([sae_path], output, core(tmp_path, protocols=("signed",)))
    assert not (output / SCRATCH).exists()
    assert not half.parent.exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bench_killed_again_and_again_ends_where_an_uninterrupted_run_ends(
    sae_path: Path, tmp_path: Path, suite_hub: HubServer
) -> None:
    environment = client_environment(suite_hub, Path(os.environ["HF_HOME"]), token=FORGET_TOKEN)
    draw, kills, runs, found_at = random.Random(4), 0, 0, Counter[int]()
    with BenchChildren(environment, tmp_path / "log") as children:
        start = time.monotonic()
        whole = tmp_path / "whole"
        children.bench(sae_path, whole)
        duration = time.monotonic() - start
        expected = read_rows(whole)
        assert {row["suite"] for row in expected} == {*SUITES}
        while kills < KILLS:
            runs += 1
            output = tmp_path / f"run-{runs}"
            for _ in range(KILLS_A_RUN):
                finished = stamps(output)
                if not children.bench(sae_path, output, draw.uniform(0, duration / 3)):
                    break
                kills += 1
                found_at[check_whole(output, expected)] += 1
                now = stamps(output)
                assert {file: now[file] for file in finished} == finished, "nothing is done twice"
            children.bench(sae_path, output)
            assert check_whole(output, expected) == 2 * len(SUITES)
            table = output / CSV_FILE
            assert table.read_bytes() == (whole / CSV_FILE).read_bytes()
            assert not [*output.rglob(SCRATCH), *output.rglob(".*.tmp")]
    by_finished = dict(sorted(found_at.items()))
    print(f"{kills} kills in {runs} runs of {duration:.1f} s; finished parts: {by_finished}")
    assert len(found_at) >= 4, "kills fell into several suites"


def check_whole(output: Path, expected: list[dict[str, Any]]) -> int:
    """How many parts (a suite on a protocol) are finished, each of them whole and right."""
    records = []
    for folder in (output / "saebench").glob("*/*/*"):
        if folder.name.startswith("."):  # never read: the next command removes it
            continue
        results = {file.name: json.loads(file.read_text()) for file in folder.iterdir()}
        records.append(results.pop("run.json"))
        assert len(results) == 1, "SAEBench's own file beside the record"
    for record in records:
        for name, budget, value in record["metrics"]:
            key = {"suite": record["suite"], "metric": name, "budget": budget, "value": value}
            assert [row for row in expected if key.items() <= row.items()]
    if (output / CSV_FILE).is_file():
        assert all(row in expected for row in read_rows(output))
    return len(records)
