"""What each suite needs from outside, whether it is there, and how to get it if not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import config as datasets_config
from huggingface_hub import HfApi

from sae_lens_bipolar.errors import BenchError, ConfigError
from sae_lens_bipolar.inputs.fetch import check_hub
from sae_lens_bipolar.inputs.models import BUNDLED
from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.suites.record import Need
from sae_lens_bipolar.saebench.suites.registry import SUITES

_SCRIPTED = "codeparrot/github-code"  # the one data set that is a script in its repository


@dataclass(frozen=True)
class Asset:
    """One thing from outside."""

    suites: tuple[str, ...]  # which suites need it
    name: str  # Hub name, or path
    kind: str  # "model", "data set", "file"
    problem: str | None  # None: it is there; else what is wrong and how to get it


def resolve_paths(config: BenchConfig) -> BenchConfig:
    """`config` with absolute paths, since every suite runs in a folder of its own.

    A path that is not given is looked for where the suite's record says.

    Raises:
        ConfigError: for a path that does not exist.
    """
    changes: dict[str, str] = {}
    looked_for = {name: place for one in SUITES.values() for name, place in one.paths.items()}
    for name, place in {**looked_for, "data_folder": None}.items():
        given = getattr(config, name)
        if given is not None:
            changes[name] = _existing(name, given)
        elif place is not None and place.is_file():
            changes[name] = str(place.resolve())
    for name in (name for suite in SUITES.values() for name in suite.texts):
        given = getattr(config, name)
        if given.startswith((".", "/", "~")) or Path(given).exists():
            changes[name] = _existing(name, given)
    return replace(config, **changes)


def _existing(name: str, given: str) -> str:
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigError(f"{name}={given!r}: there is no such file or folder")
    return str(path.resolve())


def check_assets(config: BenchConfig, models: Sequence[str]) -> list[Asset]:
    """Look for everything the configured suites and `models` need; nothing is downloaded."""
    needs: dict[Need, list[str]] = {}
    for name in config.suites:
        for need in dict.fromkeys(SUITES[name].needs(config)):
            needs.setdefault(need, []).append(name)
    found = [Asset(config.suites, name, "model", _model_problem(name)) for name in models]
    for need, suites in needs.items():
        problem = None if need.kind == "file" else _dataset_problem(need.name, config)
        if problem and need.otherwise:
            problem += f"; or {need.otherwise}"
        found.append(Asset(tuple(suites), need.name, need.kind, problem))
    return found


def missing_for(suite: str, assets: Iterable[Asset]) -> str | None:
    """Why `suite` cannot run, or None; models are checked apart."""
    problems = [
        asset.problem
        for asset in assets
        if asset.problem and suite in asset.suites and asset.kind != "model"
    ]
    return "; ".join(problems) or None


def table(assets: Iterable[Asset]) -> str:
    """The table printed before anything runs: Markdown, one line per asset."""
    lines = ["| what | for | there | how to get it |", "|---|---|---|---|"]
    for asset in assets:
        there = "no" if asset.problem else "yes"
        suites = ", ".join(asset.suites)
        lines.append(f"| {asset.kind} {asset.name} | {suites} | {there} | {asset.problem or ''} |")
    return "\n".join(lines)


def _model_problem(name: str) -> str | None:
    if name in BUNDLED or Path(name).expanduser().exists():
        return None
    return _hub_problem(name, "model", "config.json")


def _dataset_problem(name: str, config: BenchConfig) -> str | None:
    if config.data_folder and (Path(config.data_folder) / name).is_dir():
        return None
    problem = _hub_problem(name, "dataset", "README.md")
    if problem is None and name == _SCRIPTED and not config.trust_remote_code:
        script = f"{name.split('/')[1]}.py"
        if script in HfApi().list_repo_files(name, repo_type="dataset"):
            return f"{name} runs code from its repository: allow it with --trust-remote-code"
    return problem


def _hub_problem(name: str, repo_type: str, file: str) -> str | None:
    cached = Path(datasets_config.HF_DATASETS_CACHE) / name.replace("/", "___").lower()

    def is_cached() -> bool:
        return repo_type == "dataset" and cached.is_dir()

    try:
        check_hub(name, repo_type, file, None, is_cached, BenchError)
    except BenchError as error:
        return str(error)
    return None
