"""Output directories: new, empty, or marked as ours; nobody's folder is taken for a run.

A command that replaces and removes files does so only in a directory that holds the marker file
`.sae-lens-bipolar`, which this package writes when it starts a run there.
"""

from pathlib import Path

from sae_lens_bipolar.errors import ConfigError, UnsafePathError
from sae_lens_bipolar.files.atomic import explaining_write_errors, write_text
from sae_lens_bipolar.files.fields import load_json
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE, HOLDER, LOCK, MARKER

_MARK = "sae-lens-bipolar writes here: it may replace and remove files in this directory.\n"
# Of the environment.json that runs have held since before there was a marker.
_ENVIRONMENT_KEYS = frozenset({"command", "seed", "device", "threads", "python", "packages"})


def require_output(directory: str | Path) -> None:
    """Check that `directory` may be written to as an output, before anything in it is touched.

    Raises:
        ConfigError: unless it is new, empty, or ours; also if it, or what it should lie in, is a
            file.
    """
    path = Path(directory)
    if not str(directory).strip():
        raise ConfigError("the output directory has an empty name: give a directory")
    for place in (path, *path.parents):
        if place.is_dir():
            break
        if place.exists() or place.is_symlink():
            raise ConfigError(f"{path} cannot be an output directory: {place} is not a directory")
    if not path.is_dir() or is_ours(path):
        return
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in (LOCK, HOLDER))
    if others:
        raise ConfigError(
            f"{path} is not a run of this package and not empty (it holds {others[0]!r}"
            f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}): nothing in it was "
            "touched. Give a new or empty directory as the output"
        )


def claim_output(directory: str | Path) -> None:
    """Make `directory`, if need be, and mark it as ours, so that a later command may go on there.

    Raises:
        ConfigError: as `require_output`, or if it cannot be written to.
        DiskFullError: if the disk is full.
    """
    require_output(directory)
    if not (Path(directory) / MARKER).is_file():
        with explaining_write_errors(directory):
            write_text(Path(directory) / MARKER, _MARK)


def mark(directory: Path) -> None:
    """Mark a directory that this process has just made."""
    (directory / MARKER).write_text(_MARK, encoding="utf-8")


def is_ours(directory: str | Path) -> bool:
    """Whether this package made `directory`: it is marked, or a run from before there were marks.

    Such a run holds `config.yaml` and an `environment.json` with this package's keys.
    """
    path = Path(directory)
    marker = path / MARKER
    if marker.is_file() and not marker.is_symlink():
        return True
    files = (path / CONFIG_FILE, path / ENVIRONMENT_FILE)
    if any(file.is_symlink() or not file.is_file() for file in files):
        return False
    try:
        found = load_json(files[1])
    except (OSError, ValueError):
        return False
    return (
        isinstance(found, dict)
        and found.keys() >= _ENVIRONMENT_KEYS
        and isinstance(found["packages"], dict)
        and "sae-lens" in found["packages"]
    )


def require_replaceable(folder: str | Path) -> None:
    """Check that a folder with a fixed name (`report`, `publish`) may be replaced as a whole.

    Raises:
        UnsafePathError: unless it is absent, empty, marked itself, or lies directly in a directory
            that is ours.
    """
    path = Path(folder)
    if path.is_symlink():
        raise UnsafePathError(f"{path} is a link: it is not replaced; remove it yourself")
    if not path.exists() or is_ours(path.parent) or is_ours(path):
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    raise UnsafePathError(
        f"{path} was not made by this package and would be replaced: nothing in it was touched. "
        "Rename it, and run the same command again"
    )
