"""Processes that run `bench` and may be killed, forked from one that has the libraries in memory.

A kill then finds the benchmark at work, not the interpreter importing. The process that forks is
one of its own, without threads: a child of the test process could inherit a lock that one of the
Hub's threads holds.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

_SERVE = (
    "import sys; sys.path[:0] = {path!r}; from tests.saebench.bench_children import serve; serve()"
)


class BenchChildren:
    """Runs `bench` with `tiny_config()` in children; use it as a context."""

    def __init__(self, environment: Mapping[str, str], log: Path):
        self.log = log
        self._forker = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(path=sys.path)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` must see what has not been read
        )
        assert self._answer() == "ready"

    def __enter__(self) -> "BenchChildren":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._forker.stdin is not None
        self._forker.stdin.close()
        self._forker.wait(timeout=60)

    def bench(self, sae: Path, output: Path, seconds: float | None = None) -> bool:
        """Run it, SIGKILL it after `seconds`; whether it was killed before it ended."""
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        request = json.dumps([str(sae), str(output), str(self.log)])
        self._forker.stdin.write(f"{request}\n".encode())
        child = int(self._answer())
        if seconds is not None and not select.select([self._forker.stdout], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        code = int(self._answer())
        assert code in (0, -signal.SIGKILL), self.log.read_text()[-3000:]
        return code != 0

    def _answer(self) -> str:
        assert self._forker.stdout is not None
        return self._forker.stdout.readline().decode().strip()


def serve() -> None:
    """Fork a child for each line of stdin; answer its id, and then its exit code."""
    import torch

    from sae_lens_bipolar.saebench.suites.registry import SUITES

    for suite in SUITES.values():
        importlib.import_module(suite.host)
    torch.set_num_threads(1)
    assert threading.active_count() == 1
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _bench_and_exit(*map(Path, json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _bench_and_exit(sae: Path, output: Path, log: Path) -> NoReturn:
    from sae_lens_bipolar.saebench import bench
    from tests.saebench.bench_models import tiny_config

    code = 1
    try:
        quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        outcome = bench([sae], output, tiny_config())
        assert outcome.not_run == [], outcome.not_run
        code = 0
    except BaseException as error:  # printed, for the test to show
        traceback.print_exception(error)
        sys.stderr.flush()
    finally:
        os._exit(code)
