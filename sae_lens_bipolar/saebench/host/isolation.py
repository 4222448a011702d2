"""A context that leaves no trace: whatever a suite does to the process is undone on the way out."""

import gc
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

from sae_lens_bipolar.saebench.host.data_only import data_only

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
def same_randomness() -> Iterator[None]:
    """The global generators of Python, numpy and torch (every CUDA device) end as they began."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def isolated(
    seed: int, directory: Path, modules: Iterable[torch.nn.Module], log: Path
) -> Iterator[None]:
    """Run the body in `directory`, seeded, its prints in `log`; restore everything afterwards.

    Restored: the random states of Python, numpy and torch (every CUDA device), gradient mode, each
    of `modules`' train mode, the working directory, the environment, stdout and stderr. Meanwhile
    what is read from files is data alone (`data_only`).
    """
    grad, cwd, environment = torch.is_grad_enabled(), os.getcwd(), dict(os.environ)
    modes = [(part, part.training) for module in modules for part in module.modules()]
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        same_randomness(),
        log.open("a", encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
        data_only(),
        _cheap_collections(),
    ):
        try:
            os.environ.update(_NO_REPOSITORY)
            os.chdir(directory)
            seed_everything(seed)
            yield
        finally:
            torch.set_grad_enabled(grad)
            os.chdir(cwd)
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
            for part, training in modes:
                part.training = training


@contextmanager
def _cheap_collections() -> Iterator[None]:
    """Leave what exists already out of garbage collections: RAVEL asks for two dozen per run, and
    each walks every object of every imported library (6 s of an 8 s run on a tiny model)."""
    is_free = gc.get_freeze_count() == 0  # else the caller has frozen objects of their own
    try:
        if is_free:
            gc.freeze()
        yield
    finally:
        if is_free:
            gc.unfreeze()
