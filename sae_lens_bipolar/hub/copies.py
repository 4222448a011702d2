"""Copies of a run's files as they may leave the machine: read within limits, without folders of
this machine, and looked through for secrets."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sae_lens_bipolar.errors import CheckpointError, DataError, HubError
from sae_lens_bipolar.files.atomic import write_json, write_text
from sae_lens_bipolar.files.fields import an_object, load_json, load_yaml, parse_json, read_lines
from sae_lens_bipolar.files.redaction import find_secret, without_folders

# Longer than keys without any other sign are: what follows is no key, whatever it begins with.
_PACKED = re.compile(r'"[A-Za-z0-9+/]{64,}={0,2}"')
_WEIGHTS = ".safetensors"


def copy_mapping(file: Path, target: Path) -> dict[str, Any]:
    """Copy a JSON object or a YAML mapping, and return it as it was written; {} if there is none.

    Raises:
        DataError: if it is damaged, too large, or not a mapping; names it.
    """
    if not file.is_file():
        return {}
    value = load_json(file) if file.suffix == ".json" else load_yaml(file)
    return write_mapping(target, an_object(value, str(file)), file)


def write_mapping(target: Path, value: dict[str, Any], file: Path) -> dict[str, Any]:
    """Write what was read from `file` without folders of this machine, and return that."""
    clean: dict[str, Any] = without_folders(value)
    if target.suffix == ".yaml":
        write_text(target, yaml.safe_dump(clean, sort_keys=False))
    else:
        write_clean_json(target, clean, file)
    return clean


def write_clean_json(target: Path, value: Any, file: Path) -> None:
    """Write what was read from `file` as strict JSON.

    Raises:
        DataError: if it holds NaN or an infinity, which strict JSON does not have.
    """
    try:
        write_json(target, value)
    except ValueError as error:
        raise DataError(f"{file}: holds a number that is not finite: {error}") from error


def copy_metrics(file: Path, target: Path, names: dict[str, str]) -> None:
    """Copy the lines of some SAEs from the log of a training, and name them as in `names`.

    A torn last line, of a process that was killed, is left out.
    """
    if not names or not file.is_file():
        return
    lines = [{**row, "sae": names[row["sae"]]} for row in _rows(file) if row.get("sae") in names]
    text = "".join(json.dumps(without_folders(line)) + "\n" for line in lines)
    write_text(target, text)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(file), start=1):
        if line.endswith("\n") and line.strip():
            where = f"{file}, line {number}"
            yield an_object(parse_json(line, where), where)


def copy_weights(file: Path, target: Path) -> None:
    """Copy an SAE's weights; a header's free text (`__metadata__`) stays behind."""
    with safe_open(file, framework="pt") as weights:
        has_text = bool(weights.metadata())
    if has_text:
        save_file(load_file(file), target)
    else:
        shutil.copyfile(file, target)


def copy_sparsity(file: Path, target: Path, d_sae: int) -> bool:
    """Copy log10 of the firing frequencies, `[d_sae]`; False if there is no such file.

    Raises:
        CheckpointError: if the file holds anything else.
    """
    if not file.is_file():
        return False
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    if shapes != {"sparsity": [d_sae]} or not found["sparsity"].is_floating_point():
        raise CheckpointError(
            f"{file} holds {list(shapes.items())[:5]}, expected floating-point 'sparsity' of shape "
            f"[{d_sae}]: remove it, or restore it"
        )
    if torch.isnan(found["sparsity"]).any():
        raise CheckpointError(f"{file} holds NaN: remove it, or restore it")
    save_file(found, target)
    return True


def refuse_secrets(folder: Path) -> None:
    """Look through every text below `folder`; in scripts, the numbers packed as base64 aside.

    In some megabytes of base64 the four letters that begin a key come up by chance.

    Raises:
        HubError: naming the file and the kind of secret that it would publish.
    """
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.suffix == _WEIGHTS:
            continue
        text = file.read_text(encoding="utf-8")
        found = find_secret(_PACKED.sub('""', text) if file.suffix == ".js" else text)
        if found:
            raise HubError(
                f"{file.relative_to(folder)} would publish {found}; remove it from the run's own "
                "file, revoke it, and publish again"
            )
