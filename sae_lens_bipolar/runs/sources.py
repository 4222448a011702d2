"""Where SAEs come from: checkpoint and run directories, the Hub, SAELens's list of releases."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.errors import CheckpointError, ConfigError
from sae_lens_bipolar.files.digests import checkpoint_digest
from sae_lens_bipolar.files.names import CHECKPOINTS, CONFIG_FILE, ENVIRONMENT_FILE, PROGRESS
from sae_lens_bipolar.files.paths import inside
from sae_lens_bipolar.files.redaction import without_secrets
from sae_lens_bipolar.polarity.splitting import inference_form
from sae_lens_bipolar.runs.checkpoints import load_sae

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+([:/].*)?")

_DEPTH = 8  # folders between a run's `checkpoints` and an SAE


@dataclass(frozen=True)
class Source:
    """One finished SAE, and where it lies."""

    run_name: str  # as its run's files call it; its id on the Hub
    origin: str  # directory, repository:id or release:id
    digest: str  # of its configuration and weights
    path: Path | None  # checkpoint directory; None for one of SAELens's releases
    run_dir: Path | None  # holds the run's configuration and results; None without a run

    @property
    def name(self) -> str:
        """As results and file names call it: `run_name` without what a file name cannot hold."""
        return re.sub(r"[^A-Za-z0-9._=-]+", "-", self.run_name).strip("-.")

    def load(self) -> SAE[Any]:
        """The SAE in its inference form, in float32, on the CPU.

        Raises:
            CheckpointError: if the checkpoint is not what its `cfg.json` says.
        """
        if self.path is None:
            release, _, sae_id = self.origin.partition(":")
            return SAE.from_pretrained(release, sae_id)
        return inference_form(load_sae(self.path, dtype="float32"))


def find_saes(given: Sequence[str | Path]) -> list[Source]:
    """The SAEs behind each of `given`, in order, with names that differ.

    A checkpoint directory; a run directory, for every SAE in its `checkpoints`; a directory of
    checkpoints; `owner/name:id` or `owner/name/id` on the Hub (without an id: all of that
    repository); `release:id` of SAELens's own list.

    Raises:
        CheckpointError: for a path without a finished SAE, or a damaged one.
        UnsafePathError: if a file of a run's SAE is a link that leaves the run.
        ConfigError: if two SAEs have the same name, or nothing was given.
    """
    if not given:
        raise ConfigError("no SAE given: a checkpoint or run directory, or a name on the Hub")
    found = [source for one in given for source in _resolve(one)]
    names = [source.name for source in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        origins = [source.origin for source in found if source.name == twice[0]]
        raise ConfigError(
            f"two SAEs are called {twice[0]!r} ({' and '.join(origins)}): give each its own "
            "--output, or rename a directory"
        )
    return found


def _resolve(given: str | Path) -> list[Source]:
    path = Path(given).expanduser()
    if os.path.exists(path):  # Path.exists would raise for text that cannot be a file name
        return _local(path.resolve())
    text = str(given)
    release, _, sae_id = text.partition(":")
    if sae_id and release in get_pretrained_saes_directory():
        digest = hashlib.sha256(text.encode()).hexdigest()
        return [Source(text, text, digest, None, None)]
    if _HUB_NAME.fullmatch(text) and not text.startswith("."):
        return _on_hub(text)
    raise CheckpointError(
        f"{text} is neither a checkpoint, a run directory, 'owner/name:id' on the Hub nor "
        "'release:id' of SAELens"
    )


def _local(path: Path) -> list[Source]:
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory: give a run or a checkpoint")
    if (path / SAE_CFG_FILENAME).exists():
        return [_checkpoint(path, path.name, _run_of(path))]
    in_run = (path / CHECKPOINTS).is_dir()
    folder = path / CHECKPOINTS if in_run else path
    found = sorted(_below(folder) if in_run else _in(folder))
    if found:
        run_dir = path if in_run else None
        names = [checkpoint.relative_to(folder).as_posix() for checkpoint in found]
        return [_checkpoint(folder / name, name, run_dir) for name in names]
    if (path / PROGRESS).is_dir() or (path / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{path} holds a run that has not finished training: run its command again first"
        )
    raise CheckpointError(
        f"{path} holds no SAE: expected {SAE_CFG_FILENAME} in it, or a run's {CHECKPOINTS}/NAME/"
    )


def _below(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Checkpoints at most `depth` folders down, but none inside another: a dry run writes copies.

    Raises:
        CheckpointError: if a folder is a link, which may lead anywhere.
    """
    for name in os.listdir(folder):
        path = folder / name
        if path.is_symlink() and path.is_dir():
            raise CheckpointError(
                f"{path} is a link, and a run's checkpoints lie in the run itself: give the "
                "folder it leads to instead, or put a copy there"
            )
        if path.is_dir() and depth:
            is_checkpoint = (path / SAE_CFG_FILENAME).exists()
            yield from [path] if is_checkpoint else _below(path, depth - 1)


def _in(folder: Path) -> Iterator[Path]:
    return (file.parent for file in folder.glob(f"*/{SAE_CFG_FILENAME}"))


def _run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in; the checkpoint itself if it holds the run's files."""
    for run_dir in (checkpoint, *checkpoint.parents[:3]):
        inside = run_dir == checkpoint or CHECKPOINTS in checkpoint.relative_to(run_dir).parts[:1]
        if inside and (run_dir / ENVIRONMENT_FILE).is_file():
            return run_dir
    return None


def _checkpoint(path: Path, name: str, run_dir: Path | None, origin: str | None = None) -> Source:
    if run_dir is not None:  # a folder of a run is checked; one by itself may be a cache of links
        for file in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
            inside(run_dir, (path / file).relative_to(run_dir))
    return Source(name, origin or str(path), checkpoint_digest(path), path, run_dir)


def _on_hub(text: str) -> list[Source]:
    repo, sae_id = _split_hub_name(text)
    try:
        files = [PurePosixPath(file) for file in HfApi().list_repo_files(repo)]
    except Exception as error:
        raise CheckpointError(
            f"{repo} cannot be read from the Hugging Face Hub: {without_secrets(str(error))}"
        ) from error
    ids = [str(file.parent) for file in files if file.name == SAE_CFG_FILENAME]
    ids = [id for id in ids if not sae_id or id == sae_id]
    if not ids:
        raise CheckpointError(f"{repo} on the Hub holds no SAE{f' {sae_id}' if sae_id else ''}")
    wanted = [
        glob.escape(str(PurePosixPath(id) / name))
        for id in ids
        for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)
    ]
    folder = Path(snapshot_download(repo, allow_patterns=wanted))
    return [
        _checkpoint(folder / id, repo.split("/")[1] if id == "." else id, None, f"{repo}:{id}")
        for id in ids
    ]


def _split_hub_name(text: str) -> tuple[str, str]:
    if ":" in text:
        repo, _, sae_id = text.partition(":")
        return repo, sae_id
    owner, name, *rest = text.split("/")
    return f"{owner}/{name}", "/".join(rest)
