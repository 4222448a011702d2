"""A context that leaves no trace: whatever a suite does to the process is undone on the way out."""

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

# SAEBench writes the commit of whatever repository the working directory is in as its own
# (sae_bench_utils/__init__.py:17). Git finds nothing here, and it writes "Unknown".
_NO_REPOSITORY = {"GIT_DIR": os.devnull}


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (absorption seeds none, and no suite
    numpy's)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def isolated(
    seed: int, directory: Path, modules: Iterable[torch.nn.Module], log: Path
) -> Iterator[None]:
    """Run the body in `directory`, seeded, its prints in `log`; restore everything afterwards.

    Restored: the random states of Python, numpy and torch (every CUDA device), gradient mode, each
    of `modules`' train mode, the working directory, the environment, stdout and stderr.
    """
    python, numpy = random.getstate(), np.random.get_state()
    grad, cwd, environment = torch.is_grad_enabled(), os.getcwd(), dict(os.environ)
    modes = [(part, part.training) for module in modules for part in module.modules()]
    devices = range(torch.cuda.device_count())
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        torch.random.fork_rng(devices=devices),
        log.open("a", encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        try:
            os.environ.update(_NO_REPOSITORY)
            os.chdir(directory)
            seed_everything(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_grad_enabled(grad)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            for part, training in modes:
                part.training = training
