"""Where the cases run: tiny models, a text, and commands in children with limits.

Nothing here but `main` is of this package, and cases look at files alone: the same cases run
against an older tree: `python -m tests.cases --tree DIR`.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import save_tiny_model, sentences, write_text

SECRET = "words that nobody else may read"
HOOK = "blocks.0.hook_mlp_out"


class Ended(NamedTuple):
    """How a command ended."""

    code: int  # below 0: the signal that ended it
    said: str  # what it printed
    seconds: float  # of processor time
    mebibytes: float  # of memory at most

    @property
    def refused(self) -> bool:
        """Whether it gave one sentence and the exit code of bad input."""
        return self.code == 2 and "Traceback" not in self.said

    def __str__(self) -> str:
        lines = self.said.strip().splitlines() or [""]
        last = next((x for x in reversed(lines) if x.startswith("sae-lens-bipolar:")), lines[-1])
        last = last.removeprefix("sae-lens-bipolar: ")
        if "Traceback" in self.said:
            return f"a traceback, {last[:90]}"
        if self.code in (-signal.SIGALRM, -signal.SIGXCPU):
            return "hangs"
        return f"exit {self.code}" + (f": {last[:110]}" if self.code else "")


class Place:
    """A folder with models and text, in which commands run."""

    def __init__(self, root: Path):
        self.root, self.n = root, 0
        self.text = write_text(root / "text.jsonl", 60)
        self.model = save_tiny_model(root / "gpt2", "gpt2")
        self.llama = save_tiny_model(root / "llama", "llama")

    def new(self, name: str) -> Path:
        """A path that is not there yet."""
        self.n += 1
        folder = self.root / f"{self.n}"
        folder.mkdir()
        return folder / name

    def run(
        self, *words: object, cwd: Path | None = None, after: float = 0, stop: int = 0
    ) -> Ended:
        """Run a command in a child; with `stop`, send it that signal after `after` seconds."""
        log = self.root / "log"
        child = os.fork()
        if child == 0:
            _work([str(word) for word in words], log, cwd or self.root)
        if stop:
            time.sleep(after)
            os.kill(child, stop)
        _, status, used = os.wait4(child, 0)
        said = log.read_text(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), said, used.ru_utime, used.ru_maxrss / 1024)

    def train(self, out: Path, *more: object, cwd: Path | None = None, **changes: Any) -> Ended:
        """`train` an AbsTopK SAE of k = 4 into `out`."""
        return self.run(*self.words(out, *more, **changes), cwd=cwd)

    def words(self, out: Path, *more: object, **changes: Any) -> list[str]:
        """The command line of `train`; a change of None leaves the flag out."""
        flags = {
            "model_name": self.model,
            "dataset_path": self.text,
            "hook_name": HOOK,
            "d_in": 32,
            "d_sae": 64,
            "architecture": "abstopk",
            "context_size": 32,
            "training_tokens": 1024,
            "train_batch_size_tokens": 128,
            "store_batch_size_prompts": 4,
            "n_batches_in_buffer": 16,
            "lr": 0.001,
            "seed": 1,
            "checkpoint_path": None,
            "output_path": out,
        }
        flags |= changes
        flat = [
            str(part)
            for name, value in flags.items()
            if value is not None
            for part in (f"--{name}", value)
        ]
        k = ["-k", "4"] if flags["architecture"] in ("abstopk", "topk") else []
        return ["train", *flat, *k, *map(str, more)]

    def publish(self, path: Path) -> Ended:
        return self.run("publish", path, "ada/x", "--license", "mit", "--dry-run")

    def trained(self) -> Path:
        """A run of `train`, a copy of one that is made once."""
        whole = self.root / "trained"
        if not whole.exists():
            ended = self.train(whole)
            if ended.code:
                raise RuntimeError(ended.said[-2000:])
        copy = self.new("run")
        shutil.copytree(whole, copy)
        return copy


def sae_in(run: Path) -> Path:
    """The folder of the SAE: of a run, or of what older versions left."""
    found = sorted(run.glob("checkpoints/*/cfg.json"))
    return found[0].parent if found else run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sae_in(run) / "sae_weights.safetensors")


def summary(run: Path) -> dict[str, Any]:
    file = run / "results/summary.json"
    return json.loads(file.read_text())[0] if file.is_file() else {}


def config(run: Path) -> dict[str, Any]:
    return json.loads((sae_in(run) / "cfg.json").read_text())


def change_config(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = config(run)
    change(values)
    (sae_in(run) / "cfg.json").write_text(json.dumps(values))
    (sae_in(run) / "sealed.json").unlink(missing_ok=True)


def swap_weights(run: Path) -> None:
    """Other weights of the same shape."""
    file = sae_in(run) / "sae_weights.safetensors"
    other = {name: (2 * tensor).clone() for name, tensor in weights(run).items()}
    file.unlink()
    save_file(other, file)
    (sae_in(run) / "sealed.json").unlink(missing_ok=True)


def card(run: Path) -> str:
    file = run / "publish/README.md"
    return file.read_text() if file.is_file() else ""


def published(run: Path) -> str:
    """All that would leave the machine, as text."""
    files = (file for file in (run / "publish").rglob("*") if file.is_file())
    return "".join(file.read_bytes().decode(errors="replace") for file in files)


def long_text(file: Path, mebibytes: float) -> Path:
    """A .jsonl file of different documents."""
    stream = sentences(5)
    block = " ".join(next(stream) for _ in range(60))
    with open(file, "w") as out:
        for n in range(int(mebibytes * (1 << 20) / len(block))):
            out.write(json.dumps({"text": f"{n} {block}"}) + "\n")
    return file


def _work(words: list[str], log: Path, cwd: Path) -> None:
    code = 1
    try:
        quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.stdout = sys.stderr = os.fdopen(quiet, "w", buffering=1)
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(240)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (30, 31))
        os.chdir(cwd)
        torch.seed()  # children of one process would share its random numbers
        from sae_lens_bipolar.cli import main

        code = main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        os._exit(code or 0)
