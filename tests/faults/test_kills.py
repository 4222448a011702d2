"""SIGKILL at random moments of training and of publishing, then the same command again.

A child is forked from a process that has everything in memory, so a start costs nothing and the
kill finds training itself. The moments are drawn by a seeded generator from the whole duration.
"""

import faulthandler
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file
from tqdm.std import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.runs.checkpoints import is_whole, latest_checkpoint, load_sae
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.runner import RunDirectoryRunner
from tests.hub.fake.clients import clients_at
from tests.hub.fake.server import HubServer
from tests.hub.published_run import write_run
from tests.runs.test_runner import CONTEXT, make_config

TRAINING_KILLS, PUBLISH_KILLS = 40, 20
KILLS_A_RUN = 4  # then it is left to end: what a kill costs must never be that it cannot
HANGS_AFTER = 120  # seconds, after which a child prints where it is and ends
TOKEN = "hf_" + "KillMe0123456789" * 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def progress_bars_of_one_process() -> Iterator[None]:
    """tqdm's lock is shared by forked processes: a child killed holding it would stop the next."""
    kinds: list[Any] = [tqdm]
    for kind in kinds:  # a kind of bar that was used first has a lock of its own
        kinds += kind.__subclasses__()
    shared = {kind: kind._lock for kind in kinds if "_lock" in vars(kind)}
    for kind in {tqdm, *shared}:
        kind.set_lock(threading.RLock())
    yield
    for kind, lock in shared.items():
        kind.set_lock(lock)


def run_in_child(work: Callable[[], object], seconds: float | None, log: Path) -> bool:
    """Fork, do `work` there, SIGKILL it after `seconds`; whether it was killed before it ended."""
    child = os.fork()
    if child == 0:
        _work_and_exit(work, log)
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[:3000]
                return False
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), log.read_text()[:3000]
    return status != 0


def _work_and_exit(work: Callable[[], object], log: Path) -> NoReturn:
    """In a forked child: do `work`, what it prints going to `log`, and end."""
    code = 1
    try:
        quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, file=quiet)
        work()
        code = 0
    except BaseException as error:  # printed, for the test to show
        traceback.print_exception(error)
    finally:
        os._exit(code)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(run_dir.glob("checkpoints/*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def figures(run_dir: Path) -> list[dict]:
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_training_killed_forty_times_ends_where_an_uninterrupted_run_ends(
    tmp_path: Path, tiny_model: HookedTransformer, tiny_text: Path
) -> None:
    documents = load_documents(tiny_text)
    tokens = split_tokens(documents, tokenizer_of(tiny_model), context_size=CONTEXT, seed=7)

    def train(run_dir: Path) -> None:
        if (run_dir / "checkpoints").exists():  # a sweep trains nothing again; see `run_sweep`
            return
        run_dir.mkdir(exist_ok=True)
        cfg = make_config(tiny_model.cfg.d_model, n_checkpoints=6)
        RunDirectoryRunner(cfg, run_dir, tiny_model, tokens.train, log_every=1).run()

    log, whole = tmp_path / "log", tmp_path / "whole"
    start = time.monotonic()
    run_in_child(lambda: train(whole), None, log)
    duration = time.monotonic() - start
    expected, rows = weights(whole), figures(whole)
    assert len(expected) > 4

    draw, kills, resumed, runs = random.Random(1), 0, 0, 0
    while kills < TRAINING_KILLS:
        runs += 1
        run_dir = tmp_path / f"run-{runs}"
        for _ in range(KILLS_A_RUN):
            if not run_in_child(lambda: train(run_dir), draw.uniform(0, duration), log):  # noqa: B023
                break
            kills += 1
            newest = latest_checkpoint(run_dir / "progress")
            resumed += newest is not None
            assert newest is None or is_whole(newest)
        if not (run_dir / "checkpoints").exists():  # all of it, or nothing
            run_in_child(lambda: train(run_dir), None, log)  # noqa: B023
        found = weights(run_dir)
        assert found.keys() == expected.keys()
        differing = [name for name in expected if not torch.equal(found[name], expected[name])]
        assert not differing
        assert figures(run_dir) == rows
    print(f"{kills} kills in {runs} runs of {duration:.1f} s; {resumed} resumed from a checkpoint")
    assert resumed >= TRAINING_KILLS // 8


def test_train_stopped_forty_times_in_four_ways_ends_with_the_same_bytes(
    tmp_path: Path, tiny_model_dirs: dict[str, Path], tiny_text: Path
) -> None:
    def words(run_dir: Path) -> list[str]:
        return [
            *("train", "--architecture", "sign_aware_gated", "--l0_target", "4"),
            *("--threshold_init_l0", "4", "--d_in", "32", "--d_sae", "48", "--lr", "0.003"),
            *("--model_name", str(tiny_model_dirs["gpt2"]), "--dataset_path", str(tiny_text)),
            *("--hook_name", "blocks.0.hook_mlp_out", "--context_size", "16", "--seed", "3"),
            *("--training_tokens", "960", "--train_batch_size_tokens", "32"),
            *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8"),
            *("--n_checkpoints", "6", "--output_path", str(run_dir)),
        ]

    def start(run_dir: Path) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                quiet = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                sys.stdout = sys.stderr = os.fdopen(quiet, "w", buffering=1)
                faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, file=quiet)
                code = main(words(run_dir))
            except BaseException as error:  # printed, for the test to show
                traceback.print_exception(error)
            finally:
                os._exit(code)
        return child

    def end(child: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    began = time.monotonic()
    assert end(start(tmp_path / "whole")) == 0, (tmp_path / "log").read_text()[:3000]
    duration = time.monotonic() - began
    expected, rows = weights(tmp_path / "whole"), figures(tmp_path / "whole")
    ways = [(signal.SIGKILL,), (signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT,) * 2]
    draw, stops, runs, found = random.Random(5), 0, 0, Counter[int]()
    while stops < TRAINING_KILLS:
        runs += 1
        run_dir = tmp_path / f"run-{runs}"
        for _ in range(KILLS_A_RUN):
            child = start(run_dir)
            time.sleep(draw.uniform(0.05, duration))
            for number in ways[stops % len(ways)]:
                os.kill(child, number)
            code = end(child)
            found[code] += 1
            if code == 0:
                break
            # A signal before `main` begins ends a process as it ends any other.
            assert code in (-9, -2, -15, 130, 143), (tmp_path / "log").read_text()[:3000]
            assert "Traceback" not in (tmp_path / "log").read_text()
            stops += 1
        assert end(start(run_dir)) == 0, (tmp_path / "log").read_text()[:3000]
        assert weights(run_dir).keys() == expected.keys()
        assert all(torch.equal(weights(run_dir)[name], expected[name]) for name in expected)
        assert figures(run_dir) == rows
        (summary,) = json.loads((run_dir / "results/summary.json").read_text())
        (whole,) = json.loads((tmp_path / "whole/results/summary.json").read_text())
        assert summary | {"train_seconds": 0} == whole | {"train_seconds": 0}
    print(f"{stops} stops in {runs} runs of {duration:.1f} s: exit codes {dict(found)}")


class Publisher:
    """A process without threads, forked before the Hub starts, that forks a child a publish.

    A child of the process that serves could inherit a lock one of its threads holds.
    """

    def __init__(self, run_dir: Path, home: Path, log: Path):
        self.log = log
        asked, self._ask = os.pipe()
        self._told, tell = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(self._ask)
            with os.fdopen(asked) as requests:
                for line in requests:
                    endpoint, repo_id = json.loads(line)
                    hub: Any = SimpleNamespace(endpoint=endpoint)
                    with clients_at(hub, home=home, token=TOKEN):
                        child = os.fork()
                        if child == 0:
                            config = PublishConfig(repo_id, license="mit")
                            _work_and_exit(lambda: publish(run_dir, config), log)  # noqa: B023
                        os.write(tell, f"{child}\n".encode())
                        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                        os.write(tell, f"{code}\n".encode())
            os._exit(0)
        os.close(asked)
        os.close(tell)
        self._answers = os.fdopen(self._told)

    def publish(self, hub: HubServer, repo_id: str, seconds: float | None) -> bool:
        """Publish, SIGKILL it after `seconds`; whether it was killed before it ended."""
        os.write(self._ask, (json.dumps([hub.endpoint, repo_id]) + "\n").encode())
        child = int(self._answers.readline())
        if seconds is not None and not select.select([self._told], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        code = int(self._answers.readline())
        assert code in (0, -signal.SIGKILL), self.log.read_text()[:3000]
        return code != 0

    def stop(self) -> None:
        os.close(self._ask)
        os.waitpid(self.process, 0)


def test_publish_killed_twenty_times_never_promises_what_is_not_there(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", ("abstopk", "sign_aware_gated", "topk"))
    publisher = Publisher(run_dir, tmp_path / "home", tmp_path / "log")
    with HubServer() as hub:
        hub.add_user("ada", TOKEN)
        start = time.monotonic()
        publisher.publish(hub, "ada/whole", None)
        duration = time.monotonic() - start
        expected = {n: b.data for n, b in hub.repository("ada/whole").at().files.items()}
        draw, kills, repositories, found = random.Random(2), 0, 0, Counter[str]()
        while kills < PUBLISH_KILLS:
            repositories += 1
            repo_id = f"ada/try-{repositories}"
            hub.storage.clear()  # uploads of other repositories do not count
            for _ in range(KILLS_A_RUN):
                if not publisher.publish(hub, repo_id, draw.uniform(0, duration)):
                    break
                kills += 1
                state = _state(hub, repo_id, expected)
                found[state] += 1
                if state == "everything":  # further kills would find nothing left to break
                    break
            publisher.publish(hub, repo_id, None)
            files = {n: b.data for n, b in hub.repository(repo_id).at().files.items()}
            assert _unnamed(files) == _unnamed(expected)
            assert len(hub.repository(repo_id).history()) == 2
            assert not (run_dir / "publish").exists()
            assert not list(run_dir.glob(".publish.*"))
    publisher.stop()
    print(f"{kills} kills in {repositories} repositories of {duration:.1f} s; found {dict(found)}")
    assert found.total() > found["everything"], "some kills came before the commit"
    for name in ("abstopk", "sign_aware_gated", "topk"):  # publishing changes nothing in the run
        load_sae(run_dir / "checkpoints" / name)


def _unnamed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files without what differs by the repository's name: the card's title and code."""
    return {name: data for name, data in files.items() if name != "README.md"}


def _state(hub: HubServer, repo_id: str, expected: dict[str, bytes]) -> str:
    """What a reader finds after a kill: nothing, or everything."""
    repository = hub.repositories.get(("model", repo_id))
    if repository is None:
        return "no repository"
    files = {name: blob.data for name, blob in repository.at().files.items()}
    if not files:
        return "an empty repository"
    assert _unnamed(files) == _unnamed(expected)
    assert "README.md" in files
    return "everything"
