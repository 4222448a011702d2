"""What `bench` has to do: the SAEs, and the tasks (SAE, suite, protocol) that are not done yet."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import sha256_of
from sae_lens_bipolar.inputs.models import BUNDLED, bundled_model_dir
from sae_lens_bipolar.inputs.trained_on import BUNDLED_MODEL, loadable_name, require_fits
from sae_lens_bipolar.runs.sources import Source
from sae_lens_bipolar.saebench import store
from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.options import PROTOCOLS
from sae_lens_bipolar.saebench.protocols import is_one_run
from sae_lens_bipolar.saebench.suites.registry import SUITES


@dataclass(frozen=True)
class Subject:
    """An SAE, and what decides how it is run."""

    source: Source
    architecture: str
    hook: str
    model: str
    one_run: bool  # its latents are non-negative, so that signed and split are the same run

    @property
    def layer(self) -> int:
        found = re.search(r"\d+", self.hook)
        if found is None:
            raise ConfigError(f"hook_name={self.hook!r} of {self.source.name} names no layer")
        return int(found.group())


class Task(NamedTuple):
    """One suite on one SAE under one protocol."""

    subject: Subject
    suite: str
    protocol: str  # under which it is stored
    protocols: tuple[str, ...]  # under which its numbers are reported


def subject_of(source: Source, config: BenchConfig) -> Subject:
    """The SAE at `source`, with the model that `config` or its own metadata name.

    Raises:
        ConfigError: if it names no hook, or neither of them names a model.
        ModelError: if the SAE cannot belong to that model.
    """
    sae = source.load()
    hook, model = sae.cfg.metadata.hook_name, config.model or loadable_name(sae.cfg.metadata)
    if not hook:
        raise ConfigError(f"{source.origin} does not say its hook_name (cfg.json, metadata)")
    if not model:
        raise ConfigError(f"{source.origin} does not say its model: give --model")
    metadata = {**sae.cfg.metadata.to_dict(), "model_name": model, BUNDLED_MODEL: None}
    require_fits(metadata, sae.cfg.d_in, source.origin)
    return Subject(source, sae.cfg.architecture(), str(hook), str(model), is_one_run(sae))


def pending_tasks(subjects: Iterable[Subject], config: BenchConfig, output: Path) -> list[Task]:
    """The tasks of `subjects` whose results are not in `output` yet, or are of other inputs."""
    tasks = [task for subject in subjects for task in _tasks(subject, config)]
    done = [
        store.is_finished(
            output, task.suite, task.protocol, task.subject.source.name, identity_of(task, config)
        )
        for task in tasks
    ]
    return [task for task, is_done in zip(tasks, done, strict=True) if not is_done]


def _tasks(subject: Subject, config: BenchConfig) -> list[Task]:
    if subject.one_run:
        return [Task(subject, suite, "signed", PROTOCOLS) for suite in config.suites]
    return [
        Task(subject, suite, protocol, (protocol,))
        for suite in config.suites
        for protocol in config.protocols
    ]


def identity_of(task: Task, config: BenchConfig) -> dict[str, Any]:
    """Everything that a task's numbers depend on; results of another identity are run again."""
    return {
        "SAE": task.subject.source.digest,
        "model": _model_identity(task.subject.model),
        "configuration": SUITES[task.suite].decisive(config),
    }


@lru_cache(maxsize=16)
def _model_identity(name: str) -> str:
    """A model's name; for a directory also what is in it."""
    folder = bundled_model_dir(name) if name in BUNDLED else Path(name).expanduser()
    if not folder.is_dir():
        return name
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return " ".join([Path(name).name, *(sha256_of(file)[:16] for file in files if file.is_file())])
