"""Checkpoints that are whole or refused: sealing, finding the newest, and loading with checks."""

import json
import shutil
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAE
from safetensors import SafetensorError, safe_open

from sae_lens_bipolar.architectures.training.checks import check_fields
from sae_lens_bipolar.errors import CheckpointError, did_you_mean
from sae_lens_bipolar.files.atomic import read_json, sha256_of, write_json
from sae_lens_bipolar.files.digests import checkpoint_digest
from sae_lens_bipolar.files.names import CHECKPOINTS, SEAL

__all__ = [
    "checkpoint_digest",
    "is_whole",
    "latest_checkpoint",
    "load_sae",
    "remove_checkpoints",
    "sae_folder",
    "seal_checkpoint",
]


def seal_checkpoint(path: Path) -> None:
    """Write `sealed.json`: the SHA-256 of every file in a finished checkpoint directory."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != SEAL)
    write_json(path / SEAL, {str(file.relative_to(path)): sha256_of(file) for file in files})


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is sealed and every file is as it was when it was sealed."""
    try:
        sealed = read_json(path / SEAL)
        return all(sha256_of(path / name) == digest for name, digest in sealed.items())
    except (OSError, ValueError):
        return False


def latest_checkpoint(directory: Path) -> Path | None:
    """The whole checkpoint with the most training samples; damaged and half-written are skipped."""
    if not directory.is_dir():
        return None
    found = [path for path in directory.iterdir() if path.is_dir() and path.name.isdigit()]
    newest_first = sorted(found, key=lambda path: int(path.name), reverse=True)
    return next((path for path in newest_first if is_whole(path)), None)


def remove_checkpoints(directory: Path, keep: Path | None = None) -> None:
    """Remove every checkpoint below `directory` except `keep`."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if keep is None or path.resolve() != keep.resolve():
            shutil.rmtree(path, ignore_errors=True)
    if keep is None:
        shutil.rmtree(directory, ignore_errors=True)


def sae_folder(path: str | Path) -> Path:
    """`path`, or for a run directory with one SAE `path/checkpoints/NAME`.

    Raises:
        CheckpointError: if it is a run of several SAEs; names them.
    """
    path = Path(path).expanduser()
    if (path / SAE_CFG_FILENAME).exists():
        return path
    found = sorted(file.parent for file in path.glob(f"{CHECKPOINTS}/*/{SAE_CFG_FILENAME}"))
    if len(found) > 1:
        raise CheckpointError(
            f"{path} is a run of {len(found)} SAEs; give one of them: {', '.join(map(str, found))}"
        )
    return found[0] if found else path


def load_sae(path: str | Path, device: str = "cpu", dtype: str | None = None) -> SAE[Any]:
    """`SAE.load_from_disk` after checking that the checkpoint is what its `cfg.json` says.

    Args:
        path: a directory holding `cfg.json` and `sae_weights.safetensors`, or a run directory
            with one SAE.
        device: where to put the weights.
        dtype: e.g. "float32"; None keeps the checkpoint's.

    Raises:
        CheckpointError: if a file is missing or damaged, the architecture is not registered,
            tensors are missing, extra or misshapen, or a run holds several SAEs.
    """
    path = sae_folder(path)
    config, shapes = _read_config(path), _read_shapes(path)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in SAE_CLASS_REGISTRY:
        raise CheckpointError(
            f"architecture in {path / SAE_CFG_FILENAME} is {architecture!r}; registered: "
            f"{', '.join(sorted(SAE_CLASS_REGISTRY))}"
            f"{did_you_mean(str(architecture), SAE_CLASS_REGISTRY)}"
        )
    if "dtype" not in config:
        raise CheckpointError(f"dtype is missing in {path / SAE_CFG_FILENAME}")
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    try:
        cfg = config_class.from_dict({**config, "device": "meta"})
        check_fields(cfg)
        expected = sae_class(cfg).state_dict()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / SAE_CFG_FILENAME} is no {architecture}: {error}") from error
    require_tensors(
        shapes, {name: list(t.shape) for name, t in expected.items()}, architecture, path
    )
    if "k" in vars(cfg) and not 1 <= vars(cfg)["k"] <= cfg.d_sae:
        raise CheckpointError(
            f"k={vars(cfg)['k']!r} in {path / SAE_CFG_FILENAME} is not allowed: 1 to {cfg.d_sae}"
        )
    _require_seal(path)
    try:
        return SAE.load_from_disk(path, device=device, dtype=dtype)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # e.g. a version's name
        raise CheckpointError(f"SAELens cannot load {path}: {error}") from error


def require_tensors(
    found: dict[str, list[int]], expected: dict[str, list[int]], architecture: str, path: Path
) -> None:
    """Compare the tensors of a checkpoint, name to shape, with those of its architecture.

    Raises:
        CheckpointError: naming the missing, extra and misshapen tensors.
    """
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} does not belong" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if problems:
        raise CheckpointError(
            f"{path / SAE_WEIGHTS_FILENAME} does not hold a {architecture} SAE of the size in "
            f"{SAE_CFG_FILENAME}: {'; '.join(problems)}"
        )


def _require_seal(path: Path) -> None:
    """Compare a checkpoint with its seal, if it has one: a flipped bit shows nowhere else."""
    if not (path / SEAL).exists() or is_whole(path):
        return
    raise CheckpointError(
        f"{path} is not as it was when it was sealed: a file is damaged or was edited. Restore it; "
        f"or, if it was changed on purpose, remove its {SEAL}"
    )


def _read_config(path: Path) -> dict[str, Any]:
    file = path / SAE_CFG_FILENAME
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} holds no {SAE_CFG_FILENAME}: not an SAE checkpoint"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds {type(config).__name__}, expected an object")
    return config


def _read_shapes(path: Path) -> dict[str, list[int]]:
    file = path / SAE_WEIGHTS_FILENAME
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} holds no {SAE_WEIGHTS_FILENAME}; weights are read from safetensors only"
        ) from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
