"""What each suite needs from outside, whether it is there, and how to get it if not."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import config as datasets_config
from huggingface_hub import HfApi

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import sha256_of
from sae_lens_bipolar.inputs.fetch import check_hub
from sae_lens_bipolar.inputs.models import BUNDLED
from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.host.hosts import BenchError

FORGET_CORPUS = "cais/wmdp-bio-forget-corpus"
# Where SAEBench expects it, relative to the working directory.
FORGET_FILE = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
RAVEL = "adamkarvonen/ravel_prompts"
_SCRIPTED = "codeparrot/github-code"  # the one data set that is a script in its repository
_MMLU, _WMDP, _WIKITEXT = "cais/mmlu", "cais/wmdp", "Salesforce/wikitext"


@dataclass(frozen=True)
class Asset:
    """One thing from outside."""

    suites: tuple[str, ...]  # which suites need it
    name: str  # Hub name, or path
    kind: str  # "model", "data set", "file"
    problem: str | None  # None: it is there; else what is wrong and how to get it


def resolve_paths(config: BenchConfig) -> BenchConfig:
    """`config` with absolute paths, since every suite runs in a folder of its own.

    A forget corpus where SAEBench looks for it (`FORGET_FILE`) is found here.

    Raises:
        ConfigError: for a path that does not exist.
    """
    changes: dict[str, Any] = {}
    for name in ("forget_corpus", "ravel_data", "data_folder"):
        given = getattr(config, name)
        if given is not None:
            path = Path(given).expanduser()
            if not path.exists():
                raise ConfigError(f"{name}={given!r}: there is no such file or folder")
            changes[name] = str(path.resolve())
    if config.forget_corpus is None and FORGET_FILE.is_file():
        changes["forget_corpus"] = str(FORGET_FILE.resolve())
    local = Path(config.core_dataset).expanduser()
    if local.exists():
        changes["core_dataset"] = str(local.resolve())
    elif config.core_dataset.startswith((".", "/", "~")):
        raise ConfigError(f"core_dataset={config.core_dataset!r}: there is no such file or folder")
    return replace(config, **changes)


def content_of(path: str | None) -> str | None:
    """A path by what is in it, so that a moved file is the same and a changed one is not."""
    if path is None or not Path(path).exists():
        return path  # "sotu", or a name on the Hub
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*"))
    digests = [sha256_of(file) for file in files if file.is_file()]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def find_forget_corpus(config: BenchConfig) -> Path | Iterable[Any]:
    """The forget corpus: a JSONL file with a column `text`, or the rows of the Hub's."""
    if config.forget_corpus is not None:
        return Path(config.forget_corpus)
    return datasets.load_dataset(FORGET_CORPUS, split="train")


def check_assets(config: BenchConfig, models: Sequence[str]) -> list[Asset]:
    """Look for everything the configured suites and `models` need; nothing is downloaded."""
    needs: dict[tuple[str, str], list[str]] = {}
    for suite in config.suites:
        for kind, name in _needs(suite, config):
            needs.setdefault((kind, name), []).append(suite)
    found = [Asset(config.suites, name, "model", _model_problem(name)) for name in models]
    for (kind, name), suites in needs.items():
        problem = None if kind == "file" else _dataset_problem(name, config)
        found.append(Asset(tuple(dict.fromkeys(suites)), name, kind, problem))
    return found


def missing_for(suite: str, assets: Iterable[Asset]) -> str | None:
    """Why `suite` cannot run, or None; models are another matter."""
    problems = [
        asset.problem
        for asset in assets
        if asset.problem and suite in asset.suites and asset.kind != "model"
    ]
    return "; ".join(problems) or None


def table(assets: Iterable[Asset]) -> str:
    """The table printed before anything runs: Markdown, one line an asset."""
    lines = ["| what | for | there | how to get it |", "|---|---|---|---|"]
    for asset in assets:
        there = "no" if asset.problem else "yes"
        suites = ", ".join(asset.suites)
        lines.append(f"| {asset.kind} {asset.name} | {suites} | {there} | {asset.problem or ''} |")
    return "\n".join(lines)


def _needs(suite: str, config: BenchConfig) -> list[tuple[str, str]]:
    if suite in ("scr", "tpp"):
        return [("data set", _repository(name)) for name in config.ablation_datasets]
    if suite == "sparse_probing":
        return [("data set", _repository(name)) for name in config.probing_datasets]
    if suite == "ravel":
        return [("file", config.ravel_data)] if config.ravel_data else [("data set", RAVEL)]
    if suite == "core":
        is_local = config.core_dataset == "sotu" or Path(config.core_dataset).exists()
        return [("file" if is_local else "data set", config.core_dataset)]
    if suite == "unlearning":
        corpus = config.forget_corpus
        return [
            *(("data set", name) for name in (_WMDP, _MMLU, _WIKITEXT)),
            ("file", corpus) if corpus else ("data set", FORGET_CORPUS),
        ]
    return []  # absorption needs the model and its tokenizer alone


def _repository(dataset_name: str) -> str:
    return dataset_name.split("_class_set")[0].removesuffix("_sentiment")


def _model_problem(name: str) -> str | None:
    if name in BUNDLED or Path(name).expanduser().exists():
        return None
    return _hub_problem(name, "model", "config.json")


def _dataset_problem(name: str, config: BenchConfig) -> str | None:
    if config.data_folder and (Path(config.data_folder) / name).is_dir():
        return None
    problem = _hub_problem(name, "dataset", "README.md")
    if problem and name == FORGET_CORPUS:
        return f"{problem}; or give the file you were granted: --forget-corpus FILE.jsonl"
    if problem is None and name == _SCRIPTED and not config.trust_remote_code:
        script = f"{name.split('/')[1]}.py"
        if script in HfApi().list_repo_files(name, repo_type="dataset"):
            return (
                f"{name} runs code from its repository: allow it with --trust-remote-code, or "
                "leave it out of --probing-datasets"
            )
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
