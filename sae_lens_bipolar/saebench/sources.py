"""Where SAEs come from: checkpoint directories, run directories, the Hub, SAELens's releases."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.errors import CheckpointError, ConfigError
from sae_lens_bipolar.files.atomic import sha256_of
from sae_lens_bipolar.files.names import CHECKPOINTS
from sae_lens_bipolar.polarity.splitting import inference_form
from sae_lens_bipolar.runs.checkpoints import load_sae

_HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """One SAE to evaluate."""

    name: str  # in results and file names
    origin: str  # directory, or repository:id
    digest: str  # of its weights and configuration
    load: Callable[[], SAE[Any]]


def find_saes(given: Sequence[str | Path]) -> list[Source]:
    """The SAEs behind each of `given`, in order, with names that differ.

    A checkpoint directory; a run directory, for every SAE in its `checkpoints`; `owner/name:id`
    or `owner/name/id` on the Hub (without an id: all of that repository); `release:id` of
    SAELens's own list.

    Raises:
        CheckpointError: for a path without an SAE, or a damaged one.
        ConfigError: if two SAEs have one name, or nothing was given.
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
    if path.exists():
        return _local(path.resolve())
    text = str(given)
    release, _, sae_id = text.partition(":")
    if sae_id and release in get_pretrained_saes_directory():
        return [_released(release, sae_id)]
    if _HUB.match(text) and not text.startswith((".", "/", "~")):
        return _on_hub(text)
    raise CheckpointError(
        f"{text} is neither a checkpoint, a run directory, 'owner/name:id' on the Hub nor "
        "'release:id' of SAELens"
    )


def _local(path: Path) -> list[Source]:
    if (path / SAE_CFG_FILENAME).is_file():
        return [_checkpoint(path, path.name)]
    folder = path / CHECKPOINTS
    files = sorted(folder.glob(f"*/{SAE_CFG_FILENAME}"))
    if not files:
        raise CheckpointError(
            f"{path} holds no SAE: expected {SAE_CFG_FILENAME} in it, or {CHECKPOINTS}/NAME/"
        )
    return [_checkpoint(file.parent, file.parent.name) for file in files]


def _checkpoint(path: Path, name: str, origin: str | None = None) -> Source:
    digest = hashlib.sha256()
    for file in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (path / file).is_file():
            raise CheckpointError(f"{path} holds no {file}")
        digest.update(sha256_of(path / file).encode())
    return Source(
        _readable(name),
        origin or str(path),
        digest.hexdigest(),
        lambda: inference_form(_load(path)),
    )


def _load(path: Path) -> SAE[Any]:
    return load_sae(path, dtype="float32")


def _on_hub(text: str) -> list[Source]:
    repo, sae_id = _split_hub_name(text)
    try:
        files = HfApi().list_repo_files(repo)
    except Exception as error:
        raise CheckpointError(
            f"{repo} cannot be read from the Hugging Face Hub: {error}"
        ) from error
    ids = [
        str(Path(file).parent)
        for file in files
        if Path(file).name == SAE_CFG_FILENAME and (not sae_id or str(Path(file).parent) == sae_id)
    ]
    if not ids:
        raise CheckpointError(f"{repo} on the Hub holds no SAE{f' {sae_id}' if sae_id else ''}")
    wanted = [f"{'' if id == '.' else id + '/'}{name}" for id in ids for name in _FILES]
    folder = Path(snapshot_download(repo, allow_patterns=wanted))
    return [
        _checkpoint(folder / id, repo.split("/")[1] if id == "." else id, f"{repo}:{id}")
        for id in ids
    ]


_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)


def _split_hub_name(text: str) -> tuple[str, str]:
    if ":" in text:
        repo, _, sae_id = text.partition(":")
        return repo, sae_id
    owner, name, *rest = text.split("/")
    return f"{owner}/{name}", "/".join(rest)


def _released(release: str, sae_id: str) -> Source:
    origin = f"{release}:{sae_id}"
    digest = hashlib.sha256(origin.encode()).hexdigest()
    return Source(_readable(origin), origin, digest, partial(SAE.from_pretrained, release, sae_id))


def _readable(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.")
