"""A stopped benchmark continues; finished runs are not redone, and nothing stale is read."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config
from hub_clients import client_environment
from hub_server import HubServer
from suite_data import FORGET_TOKEN
from tiny_models import write_text

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.saebench import BenchConfig, bench, read_rows
from sae_lens_bipolar.saebench.config import SUITES


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
    stale = output / ".scratch" / "artifacts" / "unlearning"
    stale.mkdir(parents=True)
    half = output / "saebench" / "core" / "signed" / ".abstopk.x.tmp" / "abstopk"
    half.mkdir(parents=True)
    (half / "run.json").write_text("{")
    bench([sae_path], output, core(tmp_path, protocols=("signed",)))
    assert not (output / ".scratch").exists()
    assert not half.parent.exists()


_PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from bench_models import tiny_config
from sae_lens_bipolar.saebench import bench
outcome = bench([Path({sae!r})], Path({output!r}), tiny_config())
assert outcome.not_run == [], outcome.not_run
"""


@pytest.mark.slow
def test_kills_between_and_inside_suites(
    sae_path: Path, tmp_path: Path, suite_hub: HubServer
) -> None:
    """Killed again and again, at growing distances, it ends with what one run gives."""
    whole = bench([sae_path], tmp_path / "whole", tiny_config())
    assert whole.not_run == []
    output = tmp_path / "killed"
    program = _PROGRAM.format(path=sys.path, sae=str(sae_path), output=str(output))
    environment = client_environment(suite_hub, Path(os.environ["HF_HOME"]), token=FORGET_TOKEN)
    states = set()
    # killed once so many further runs are finished, and a while into the next
    for finished, seconds in ((0, 0.3), (1, 0.0), (0, 1.0), (2, 0.1), (3, 0.5), (1, 0.0)):
        process = subprocess.Popen([sys.executable, "-c", program], env=environment)
        _wait_for_work(process, output, len(stamps(output)) // 2 + finished)
        time.sleep(seconds)
        states.add(len(stamps(output)))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "killed at work, not ended"
    assert len(states) >= 4, "kills fell into several suites"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert read_rows(output) == whole.rows
    assert {row["suite"] for row in whole.rows} == {*SUITES}
    records = [json.loads(file.read_text()) for file in (output / "saebench").rglob("run.json")]
    assert len(records) == 2 * len(SUITES)


def _wait_for_work(process: subprocess.Popen[bytes], output: Path, finished: int) -> None:
    """Wait until a suite of this process works, and `finished` runs lie in `output`."""
    deadline, before = time.monotonic() + 300, _scratch(output)
    while process.poll() is None and time.monotonic() < deadline:
        # a finished run is two files: SAEBench's and the record
        if _scratch(output) not in (None, before) and len(stamps(output)) >= 2 * finished:
            return
        time.sleep(0.02)


def _scratch(output: Path) -> int | None:
    """When the folder of the run in progress was last made."""
    try:
        return (output / ".scratch").stat().st_ctime_ns
    except FileNotFoundError:
        return None
