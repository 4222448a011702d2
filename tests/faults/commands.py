"""The commands at sizes of seconds, each run in a forked child that has the libraries in memory."""

import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.std import tqdm

from sae_lens_bipolar.cli.main import main
from tests.hub.published_run import write_run
from tests.reports.synthetic_run import make_run

HANGS_AFTER = 240  # seconds, after which a child prints where it is and ends
# Files that differ between two runs of a command: when, by what, how long.
_UNLIKE = (".lock", ".lock.json", "environment.json", "metrics.jsonl", "summary.json")
MODULES = (
    *("sae_lens_bipolar.cli.train", "sae_lens_bipolar.cli.demo", "sae_lens_bipolar.cli.bench"),
    *("sae_lens_bipolar.reports", "sae_lens_bipolar.hub.publishing", "matplotlib.pyplot"),
    *("sae_lens_bipolar.saebench.run", "sae_lens_bipolar.explorer.build"),
)


class Command(NamedTuple):
    """A command that writes into `run`, what has to lie there before, and what it makes."""

    words: Callable[[Path], list[str]]
    prepare: Callable[[Path], object]
    made: tuple[str, ...]  # folders and files of the run that are compared byte by byte


def commands(root: Path, model: Path, text: Path) -> dict[str, Command]:
    """Every command that writes, on a tiny model; `root` takes what they read."""
    from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config

    bench_model = save_bench_model(root / "bench-model", "gpt2")
    sae = save_bench_sae(root / "abstopk", bench_sae("abstopk", bench_model))
    config = tiny_config(suites=("core",), core_dataset=str(text))
    options = {name: value for name, value in vars(config).items() if value is not None}
    (root / "bench.yaml").write_text(json.dumps(options, default=str))
    hook = ["--hook_name", "blocks.0.hook_mlp_out", "--context_size", "16", "--seed", "3"]
    demo = [
        *("--model", str(model), "--corpus", str(text), "--d-sae", "96", "--l0", "6"),
        *("--hook-name", "blocks.1.hook_resid_post", "--context-size", "32", "--seed", "3"),
        *("--training-tokens", "1600", "--train-batch-size-tokens", "64"),
        *("--lr-warm-up-steps", "2", "--lr-decay-steps", "5", "--latents-shown", "2"),
        *("--eval-sequences", "16", "--loss-sequences", "16"),
    ]
    train = [
        *("--architecture", "sign_aware_gated", "--l0_target", "4", "--threshold_init_l0", "4"),
        *("--d_in", "32", "--d_sae", "48", "--lr", "0.003", "--model_name", str(model)),
        *("--dataset_path", str(text), *hook, "--training_tokens", "960"),
        *("--train_batch_size_tokens", "32", "--store_batch_size_prompts", "4"),
        *("--n_batches_in_buffer", "8", "--n_checkpoints", "6"),
    ]
    explore = ["--text", str(text), "--tokens", "512", "--context-size", "32", "--dials", "2"]
    nothing: Callable[[Path], object] = lambda run: None  # noqa: E731
    return {
        "train": Command(
            lambda run: ["train", *train, "--output_path", str(run)], nothing, ("checkpoints",)
        ),
        "demo": Command(
            lambda run: ["demo", *demo, "--output", str(run)], nothing, ("checkpoints", "results")
        ),
        "bench": Command(
            lambda run: [
                *("bench", str(sae), "--output", str(run), "--config", str(root / "bench.yaml")),
            ],
            nothing,
            ("results",),  # SAEBench's own files hold the time
        ),
        "report": Command(
            lambda run: ["report", str(run)],
            lambda run: make_run(run, d_sae=24, steps=5, latents=3),
            ("report",),
        ),
        "publish": Command(
            lambda run: ["publish", str(run), "ada/x", "--license", "mit", "--dry-run"],
            lambda run: write_run(run, ("abstopk", "sign_aware_gated", "topk")),
            ("publish",),
        ),
        "explore": Command(
            lambda run: [
                *("explore", str(sae), "--model", str(bench_model), *explore),
                *("--output", str(run)),
            ],
            nothing,
            (".",),
        ),
    }


@contextmanager
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


def load_all() -> None:
    """Import what the commands need, so that no child spends its time on that."""
    for name in MODULES:
        importlib.import_module(name)


def start(words: Sequence[str], log: Path, before: Callable[[], object] = lambda: None) -> int:
    """Fork a child that runs a command, what it prints going to `log`; its process id."""
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child != 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    else:
        code = 1
        try:
            # Until `main` begins, a signal ends the child as it ends any process.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            sys.stdout = sys.stderr = os.fdopen(quiet, "w", buffering=1)
            faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, file=quiet)
            before()
            code = main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:  # printed, for the test to show
            traceback.print_exception(error)
        finally:
            os._exit(code)
    return child


def end(child: int) -> int:
    """Wait for a child; its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(run: Path, made: Sequence[str]) -> dict[str, bytes]:
    """What a command made, byte by byte, without what two runs of it never share."""
    found = {}
    for name in made:
        for file in sorted((run / name).rglob("*")):
            if file.is_file() and file.name not in _UNLIKE:
                found[str(file.relative_to(run))] = file.read_bytes()
    return found
