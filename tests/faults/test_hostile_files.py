"""Runs of strangers, damaged in hundreds of ways: each is read, or refused in a sentence.

Every case has 10 s of processor time and 1 GiB of memory of its own, in a forked child; a folder
beside the run must stay as it is, byte by byte and time by time.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from sae_lens_bipolar import reports
from sae_lens_bipolar.cli.runner_config import parse
from sae_lens_bipolar.errors import BipolarError
from sae_lens_bipolar.files.atomic import read_json, remove_scratch
from sae_lens_bipolar.files.digests import checkpoint_digest
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.names import CENSUS, LATENTS, PROGRESS
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.runs.checkpoints import latest_checkpoint, load_sae, remove_checkpoints
from sae_lens_bipolar.runs.directory import require_same_run, start_run, truncate_metrics
from sae_lens_bipolar.runs.finetuning import finetuning_config, start_of
from sae_lens_bipolar.runs.sources import find_saes
from tests.faults.hostile_files import Damage, damage
from tests.files.decoy import make_decoy, state
from tests.hub.published_run import D_IN, write_bench, write_run
from tests.reports.synthetic_run import make_run

SAMPLE, CASES = 40, 600
SECONDS = 10  # of processor time
BLOCKED = 100  # seconds after which a case that uses no processor waits for something
MEMORY = 1 << 30  # bytes beside what the process has already
LONGEST = 5_000  # characters of an error


def load(run: Path) -> None:
    for name in ("topk", "abstopk"):
        load_sae(run / "checkpoints" / name).encode(torch.zeros(1, D_IN))


def go_on(run: Path) -> None:
    """What a command does in its output before it trains."""
    config = {"model": "smollm2-135m-instruct", "seed": 3}
    with lock_run(run):
        require_same_run(run, config)
        start_run(run, config, "demo")
        remove_scratch(run)
        truncate_metrics(run / "metrics.jsonl", 512)
        latest_checkpoint(run / PROGRESS)
        remove_checkpoints(run / PROGRESS)


def fine_tune(run: Path) -> None:
    path = run / "checkpoints/topk"
    start_of(path)
    finetuning_config(path, "topk", {"k": 3})


def count(run: Path) -> None:
    for source in find_saes([run]):
        source.load()
    Census.from_dict(read_json(run / CENSUS / "abstopk.json"))


def configure(run: Path) -> None:
    parse(["--model_name", "x", "--dataset_path", "sotu"], run / "config.yaml")


def make_card(run: Path) -> None:
    done = publish(run, PublishConfig("ada/x", license="mit"), dry_run=True)
    assert done.folder is not None
    card = (done.folder / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["license"] == "mit"
    assert len(card) < 200_000
    assert "<script" not in body.replace("\\<script", "").replace("```", "")
    for block in re.findall(r"^```python\n(.*?)^```$", body, re.S | re.M):
        compile(block, "card", "exec")
        assert "import os" not in block.replace("\\nimport os", "")


COMMANDS: dict[str, Callable[[Path], object]] = {
    "load": load,
    "go on": go_on,
    "fine-tune": fine_tune,
    "count": count,
    "configure": configure,
    "card": make_card,
    "report": reports.render,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("whole") / "run", ("abstopk", "topk"))
    claim = run / ".claim"
    claim.mkdir()
    claim_output(claim)
    (claim / ".sae-lens-bipolar").rename(run / ".sae-lens-bipolar")
    claim.rmdir()
    row = [("ce_loss_score", None, 0.5)]
    write_bench(run / "bench", run / "checkpoints/topk", "core", ("signed", "split"), row)
    (run / "progress/64").mkdir(parents=True)
    (run / "progress/64/x.json").write_text("{}")
    (run / "report").mkdir()
    other = make_run(tmp_path_factory.mktemp("results") / "run", d_sae=24, steps=3, latents=2)
    shutil.copy(other / "metrics.jsonl", run / "metrics.jsonl")
    for name in ("abstopk", "topk"):
        for folder in (CENSUS, LATENTS):
            found = read_json(other / folder / f"{name}.json")
            found["digest"] = checkpoint_digest(run / "checkpoints" / name)
            (run / folder / f"{name}.json").write_text(json.dumps(found))
    return run


def outcome(command: str, run: Path, answer: Path) -> tuple[str, str]:
    """How a command ended in a child: "done", "refused", or what went wrong; and what it said."""
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        found = ("died", "")
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(BLOCKED)
            COMMANDS[command](run)
            found = ("done", "")
        except BipolarError as error:
            found = ("refused", str(error))
        except BaseException:
            found = ("not documented", traceback.format_exc()[-1500:])
        finally:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
            answer.write_text(json.dumps(found))
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGXCPU:
        return "hangs", f"more than {SECONDS} s of processor time"
    if code == -signal.SIGALRM:
        return "hangs", f"waited {BLOCKED} s"
    if code != 0:
        return "died", f"exit {code}"
    kind, said = json.loads(answer.read_text())
    return kind, said


def wrong_with(kind: str, said: str) -> str | None:
    if kind == "refused":
        if len(said) > LONGEST:
            return f"an error of {len(said)} characters"
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said):
            return f"control characters in {said!r}"
        return None
    return None if kind == "done" else f"{kind}: {said}"


def attack(whole: Path, tmp_path: Path, seed: int, n: int) -> Counter[str]:
    """Run `n` cases; assert that each is right, and say how many ended how."""
    draw, found, wrong = random.Random(seed), Counter[str](), []
    decoy = make_decoy(tmp_path / "decoy")
    before = state(decoy)
    run = tmp_path / "run"
    for number in range(n):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        done: list[Damage] = damage(run, decoy, draw)
        # What is damaged decides nothing about the command: each may meet each.
        command = draw.choice(list(COMMANDS))
        kind, said = outcome(command, run, tmp_path / "answer")
        found[f"{command}: {kind}"] += 1
        problem = wrong_with(kind, said)
        if state(decoy) != before:
            problem = f"the folder beside the run was changed; {kind}: {said}"
        if problem:
            wrong.append(f"case {number} of seed {seed}, {command} after {done}: {problem}")
            assert state(decoy) == before, wrong[-1]
        extra = {path.name for path in tmp_path.iterdir()} - {"decoy", "run", "answer"}
        assert not extra, f"case {number}: {extra} beside the run"
    assert not wrong, f"{len(wrong)} of {n}:\n" + "\n".join(wrong[:25])
    return found


def test_a_sample(whole: Path, tmp_path: Path) -> None:
    found = attack(whole, tmp_path, seed=1, n=SAMPLE)
    assert found.total() == SAMPLE
    assert sum(number for how, number in found.items() if how.endswith("refused")) >= SAMPLE // 8


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hundreds(whole: Path, tmp_path: Path) -> None:
    found = attack(whole, tmp_path, seed=2, n=CASES)
    print(f"{found.total()} cases: {dict(sorted(found.items()))}")
    assert {how.partition(":")[0] for how in found} == {*COMMANDS}


def test_an_undamaged_run_is_read_by_every_command(whole: Path, tmp_path: Path) -> None:
    for command in COMMANDS:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        kind, said = outcome(command, tmp_path / "run", tmp_path / "answer")
        if command == "configure":  # the run's own configuration is none of `train`
            assert kind == "refused", said
        else:
            assert kind == "done", (command, said)
