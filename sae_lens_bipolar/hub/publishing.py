"""Publishing SAEs to the Hugging Face Hub: a folder, one commit, and a check of what arrived.

Large files are uploaded first and become part of the repository only with the one commit that also
holds the card, so no card ever promises what is not there. A publish that stops continues with the
same command: the folder is built anew to the same bytes, and the Hub asks only for those it misses.

SAEBench's numbers go along, and onto the card, where `bench` wrote them into a folder of the run's
or checkpoint's own directory: `sae-lens-bipolar bench RUN --output RUN/bench`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    snapshot_download,
)
from huggingface_hub.utils import validate_repo_id
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_bipolar.errors import CheckpointError, ConfigError, HubError, UnsafePathError
from sae_lens_bipolar.files.atomic import (
    atomic_path,
    explaining_full_disk,
    remove_scratch,
    sha256_of,
)
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.names import EXPLORER, MARKER, RESULTS
from sae_lens_bipolar.files.outputs import mark
from sae_lens_bipolar.files.paths import remove
from sae_lens_bipolar.files.redaction import without_secrets
from sae_lens_bipolar.hub.base_models import check_license
from sae_lens_bipolar.hub.card import write_card
from sae_lens_bipolar.hub.explorers import stage_explorer
from sae_lens_bipolar.hub.faults import ask
from sae_lens_bipolar.hub.staging import (
    SPLIT,
    StagedSAE,
    published_ids,
    reconstruct,
    stage,
)
from sae_lens_bipolar.inputs.fetch import say
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.sources import find_saes

FOLDER = "publish"  # below the run or checkpoint: what is, or would be, uploaded


@dataclass(frozen=True)
class PublishConfig:
    """Where and how SAEs are published.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    repo_id: str  # owner/name on the Hub
    private: bool = False  # whether a repository that is created is private
    revision: str = "main"  # branch, created if it does not exist
    id: str | None = None  # folder of the one SAE, or the prefix of a run's; None: their names
    license: str | None = None  # Hub identifier of the weights' licence; asked for if None
    with_split: bool = True  # also publish each signed SAE's polarity split
    with_explorer: bool = False  # also publish the run's explorer, which holds excerpts of its text
    message: str | None = None  # first line of the commit; None: which SAEs

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except ValueError as error:
            raise ConfigError(f"repo_id={self.repo_id!r} is not allowed: {error}") from None
        if self.repo_id.count("/") != 1:
            raise ConfigError(f"repo_id={self.repo_id!r} is not of the form owner/name")
        if not self.revision or self.revision.startswith("refs/") or " " in self.revision:
            raise ConfigError(f"revision={self.revision!r} is not the name of a branch")
        if self.message is not None and not self.message.strip():
            raise ConfigError("message='' is empty: give a line, or leave it out")
        if self.license is not None:
            object.__setattr__(self, "license", check_license(self.license))


class Published(NamedTuple):
    """What was published, or with `dry_run` what would be."""

    folder: Path | None  # with dry_run: to look at
    url: str | None  # of the repository
    commit: str | None  # its id
    ids: tuple[str, ...]  # folders that hold an SAE, splits included


def publish(
    path: Path,
    config: PublishConfig,
    dry_run: bool = False,
    ask_license: Callable[[str], str] | None = None,
) -> Published:
    """Publish every finished SAE of a run, or one checkpoint, and check what arrived.

    Args:
        path: a run directory, or a directory with `cfg.json` and weights.
        config: the repository and its options.
        dry_run: write `path/publish` and stop there; nothing is sent.
        ask_license: asked for a licence if `config` has none, with a sentence on the base model's.

    Raises:
        CheckpointError: if there is no finished SAE, or one is damaged.
        DataError: if a file of the run is damaged, or a benchmark's is of other weights.
        ConfigError: if an id or the licence is missing or not allowed.
        LockError: if another process works in the directory.
        DiskFullError: if the folder does not fit on the disk.
        HubError: if the Hub refuses, fails or cannot be reached, or what arrived differs.
    """
    if not dry_run and get_token() is None:
        raise HubError(
            f"publishing to {config.repo_id} needs a login: run `hf auth login` with a token that "
            "may write, or set HF_TOKEN"
        )
    if not path.is_dir():  # a name on the Hub has been published
        raise CheckpointError(f"{path} is not a directory: give a run or a checkpoint")
    sources = find_saes([path])
    ids = published_ids([source.run_name for source in sources], config.id)
    with lock_run(path), explaining_full_disk(path):
        remove_scratch(path)
        folder = path / FOLDER
        _require_own(folder)
        with atomic_path(folder) as scratch:
            staged = stage(dict(zip(ids, sources, strict=True)), scratch, config.with_split)
            if config.with_explorer:
                page = stage_explorer(path, sources, scratch)
                staged = replace(staged, explorer=page)
            saes = staged.saes
            license = config.license or _license(saes, ask_license)
            write_card(staged, config.repo_id, license, config.revision)
            mark(scratch)
        published = tuple(i for sae in saes for i in (sae.id, sae.split_id) if i)
        if dry_run:
            return Published(folder, None, None, published)
        url = _prepare_repository(config)
        message = config.message or f"Publish {', '.join(sae.id for sae in saes)}"
        say(f"uploading {', '.join(published)} to {config.repo_id}")
        folders = {*published, *([EXPLORER] if staged.explorer else [])}
        upload = partial(_commit, config, folder, folders, message)
        commit = ask(f"uploading to {config.repo_id}", config.repo_id, upload)
        say("downloading everything again to compare")
        _check_arrival(config.repo_id, commit, folder, published)
        remove(path, FOLDER)
    return Published(None, url, commit, published)


def _require_own(folder: Path) -> None:
    """Check that the folder may be replaced: it is absent, empty, or one that was staged before.

    Raises:
        UnsafePathError: if it is the user's.
    """
    marker = folder / MARKER
    is_own = marker.is_file() and not marker.is_symlink()
    if folder.is_symlink() or (folder.exists() and not is_own and any(_entries(folder))):
        raise UnsafePathError(
            f"{folder} was not made by `publish` and would be replaced: nothing in it was touched. "
            "Rename it, and run the same command again"
        )


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else [folder]


def _license(saes: list[StagedSAE], ask_license: Callable[[str], str] | None) -> str:
    model = saes[0].model
    terms = model.terms or "terms this package does not know"
    sentence = f"the base model {model.name} is under {terms}"
    if ask_license is None:
        raise ConfigError(
            f"license is not known ({sentence}): give --license with an identifier of the Hub, "
            "such as apache-2.0, mit, gemma or other"
        )
    return check_license(ask_license(sentence).strip())


def _prepare_repository(config: PublishConfig) -> str:
    """Create the repository and the branch if they are missing; return the address."""
    api, repo_id = HfApi(), config.repo_id
    doing = f"creating {repo_id}"
    create = partial(api.create_repo, repo_id, private=config.private, exist_ok=True)
    url = ask(doing, repo_id, create)
    if config.private and not ask(doing, repo_id, partial(api.model_info, repo_id)).private:
        raise HubError(
            f"private=True, but {repo_id} exists and is public: make it private in its settings, "
            "or choose another name; nothing was uploaded"
        )
    if config.revision != "main":
        branch = partial(_make_branch, api, repo_id, config.revision)
        ask(f"creating the branch {config.revision} of {repo_id}", repo_id, branch)
    return without_secrets(str(url))  # HF_ENDPOINT may hold a password


def _make_branch(api: HfApi, repo_id: str, branch: str) -> None:
    """A branch from the repository's first commit: without the SAEs of other branches."""
    if branch not in {ref.name for ref in api.list_repo_refs(repo_id).branches}:
        first = api.list_repo_commits(repo_id)[-1].commit_id
        api.create_branch(repo_id, branch=branch, revision=first, exist_ok=True)


def _commit(config: PublishConfig, folder: Path, ids: set[str], message: str) -> str:
    """Upload what the Hub lacks and commit everything at once; return the commit's id.

    Everything is asked for anew, so that after an error it can simply be called again, also when
    the commit had arrived and only its answer was lost.
    """
    api = HfApi()
    info = api.model_info(config.repo_id, revision=config.revision)
    there = {file.rfilename for file in info.siblings or ()}
    _refuse_to_orphan(config, there, ids)
    files = _files(folder)
    operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    stale = {name for name in there - files.keys() if _replaced(name, ids)}
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    done = api.create_commit(
        config.repo_id,
        operations,
        commit_message=message,
        revision=config.revision,
        parent_commit=info.sha,
    )
    return done.oid


def _refuse_to_orphan(config: PublishConfig, there: set[str], ids: set[str]) -> None:
    """Refuse if SAEs published before would stay without a word in the new card."""
    found = {name.rpartition("/")[0] for name in there if name.endswith("/" + SAE_CFG_FILENAME)}
    splits = {id + SPLIT for id in ids}
    if others := sorted(found - ids - splits):
        raise HubError(
            f"{config.repo_id} ({config.revision}) already holds {', '.join(others)}, which the "
            "new card would not mention: publish all in one go from one run, or to another "
            "repository or --revision"
        )


def _replaced(name: str, ids: set[str]) -> bool:
    """Whether a file of the repository belongs to an earlier publish of the same SAEs."""
    parent = name.rpartition("/")[0]
    return parent in ids | {id + SPLIT for id in ids} or f"/{RESULTS}/" in f"/{name}"


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MARKER
    }


def _check_arrival(repo_id: str, commit: str, folder: Path, ids: tuple[str, ...]) -> None:
    """Download the commit and compare every file, and every SAE's reconstruction of one batch.

    Raises:
        HubError: naming what differs.
    """
    with tempfile.TemporaryDirectory(prefix="sae-lens-bipolar-") as scratch:
        fetch = partial(snapshot_download, repo_id, revision=commit, cache_dir=scratch)
        arrived = Path(ask(f"downloading {repo_id} again", repo_id, fetch))
        wrong = [
            name
            for name, path in _files(folder).items()
            if not (arrived / name).is_file() or sha256_of(arrived / name) != sha256_of(path)
        ]
        if wrong:
            raise HubError(
                f"{', '.join(wrong)} in {repo_id} at {commit[:12]} differ from what was uploaded: "
                "run the command again, and do not use that commit"
            )
        for id in ids:
            ours, theirs = (reconstruct(load_sae(place / id)) for place in (folder, arrived))
            if not torch.equal(ours, theirs):
                raise HubError(f"{id} in {repo_id} at {commit[:12]} reconstructs differently")
