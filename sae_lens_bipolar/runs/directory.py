"""A run is a directory: what is in it, and what makes two runs the same.

config.yaml        the fully resolved configuration
environment.json   package versions, commit, device, threads, seed, command
metrics.jsonl      one line per logged step and SAE
checkpoints/NAME/  finished SAEs in SAELens's own format
results/*.json     one file per measurement
report/            tables, figures and the page, redrawn from the files above
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import explaining_write_errors, write_json, write_text
from sae_lens_bipolar.files.fields import (
    an_object,
    check_field,
    load_yaml,
    parse_json,
    read_lines,
)
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE
from sae_lens_bipolar.files.outputs import claim_output, require_output
from sae_lens_bipolar.files.paths import inside
from sae_lens_bipolar.sparse.measured import device_name

_PACKAGES = (
    "sae-lens-bipolar",
    "sae-lens",
    "transformer-lens",
    "transformers",
    "torch",
    "datasets",
    "huggingface-hub",
    "numpy",
    "safetensors",
    "sae-bench",
)


def require_same_run(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Check that `run_dir` is free or holds a run with the configuration `config`.

    Raises:
        ConfigError: naming the fields that differ, or if `run_dir` is not empty and not ours.
        DataError: if its `config.yaml` cannot be read.
        UnsafePathError: if that file is a link that leaves `run_dir`.
    """
    require_output(run_dir)
    existing = inside(run_dir, CONFIG_FILE)
    if not existing.exists():
        return
    before = load_yaml(existing)
    changed = [
        f"{key}: {old!r} there, {new!r} now"
        for key, old, new in differences(before, _plain(config))
    ]
    if changed:
        raise ConfigError(
            f"{run_dir} holds a run with another configuration ({'; '.join(changed)}); "
            "give another --output, or remove the directory"
        )


def start_run(run_dir: Path, config: Mapping[str, Any], command: str) -> None:
    """Mark `run_dir` as ours and write `environment.json` and `config.yaml`, if not yet there."""
    claim_output(run_dir)
    if (run_dir / CONFIG_FILE).exists():
        return
    with explaining_write_errors(run_dir):
        write_json(run_dir / ENVIRONMENT_FILE, environment(command, seed=config.get("seed")))
        write_text(run_dir / CONFIG_FILE, yaml.safe_dump(_plain(config), sort_keys=False))


def environment(command: str, seed: int | None = None) -> dict[str, Any]:
    """Versions of the packages that matter, hardware, commit, seed and the command."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "command": command,
        "seed": seed,
        "commit": _commit(),
        "device": device,
        "processor": device_name(torch.device("cpu")).removeprefix("cpu "),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def append_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows as JSON lines, in one write."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a torn last line (the process was killed) is left out.

    Raises:
        DataError: naming the line that is too long, or holds something else than an object.
    """
    if not path.exists():
        return []
    whole = (line for line in read_lines(path) if line.endswith("\n"))
    named = ((line, f"{path}, line {number}") for number, line in enumerate(whole, start=1))
    return [an_object(parse_json(line, where), where) for line, where in named]


def truncate_metrics(path: Path, n_tokens: int) -> None:
    """Drop what was logged after `n_tokens` training tokens: a resumed run logs it again."""
    rows = read_metrics(path)
    for number, row in enumerate(rows, start=1):
        check_field(row, "n_tokens", f"{path}, line {number}")
    kept = [row for row in rows if row["n_tokens"] <= n_tokens]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config, default=str))


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value there, value here) of every field in which two configurations differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            path = f"{key}.{name}" if key else name
            yield from differences(before.get(name), now.get(name), path)
    elif before != now:
        yield key, before, now


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree this package runs from; None for an installed wheel."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
