"""Checkpoints that are whole or refused: sealing, finding the newest, and loading with checks."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors import SafetensorError, safe_open

from sae_lens_bipolar.architectures.registry import require_loaded
from sae_lens_bipolar.architectures.training.checks import check_fields
from sae_lens_bipolar.errors import CheckpointError, DataError, did_you_mean, require_number, shown
from sae_lens_bipolar.files.atomic import read_json, sha256_of, write_json
from sae_lens_bipolar.files.fields import load_json
from sae_lens_bipolar.files.names import CHECKPOINTS, SEAL
from sae_lens_bipolar.files.paths import open_regular
from sae_lens_bipolar.polarity.splitting import inference_form

_DTYPES = ("F64", "F32", "F16", "BF16")  # of weights, as safetensors names them
_PROBLEMS = 8  # tensors that a message names


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
    """The checkpoint with the most training samples of those that are whole."""
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

    A training checkpoint (one with an `activation_scaler.json` beside the weights) gives the SAE in
    its inference form, with the scaling or whitening of its input folded in.

    Args:
        path: a directory holding `cfg.json` and `sae_weights.safetensors`, or a run directory
            with one SAE.
        device: where to put the weights.
        dtype: e.g. "float32"; None keeps the checkpoint's.

    Raises:
        CheckpointError: if a file is missing or damaged, the architecture is not registered,
            tensors are missing, extra, misshapen, not real or not finite, a run holds several SAEs,
            or the SAE expects scaled activations and the factor is missing.
        HostError: if the installed SAELens lacks what the architecture needs.
    """
    path = sae_folder(path)
    config, shapes = _read_config(path), _read_shapes(path)
    if (path / ACTIVATION_SCALER_CFG_FILENAME).exists():
        cfg = _check(path, config, shapes, SAE_TRAINING_CLASS_REGISTRY)
        return _require_finite(_folded(path, cfg, device, dtype), path)
    cfg = _check(path, config, shapes, SAE_CLASS_REGISTRY)
    if cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        raise CheckpointError(
            f"{path} expects scaled activations (normalize_activations="
            f"{cfg.normalize_activations!r}), and {ACTIVATION_SCALER_CFG_FILENAME}, which says "
            "how, is missing: take it from the training checkpoint, or take the finished SAE"
        )
    try:
        sae = SAE.load_from_disk(path, device=device, dtype=dtype)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # e.g. another version's field
        raise CheckpointError(f"SAELens cannot load {path}: {error}") from error
    return _require_finite(sae, path)


def _check(
    path: Path,
    config: dict[str, Any],
    shapes: dict[str, list[int]],
    registry: Mapping[str, tuple[type[Any], type[Any]]],
) -> SAEConfig:
    """The configuration in `path`, if its weights are those of its architecture in `registry`."""
    architecture = config.get("architecture")
    if isinstance(architecture, str):
        require_loaded(architecture)
    if not isinstance(architecture, str) or architecture not in registry:
        raise CheckpointError(
            f"architecture in {path / SAE_CFG_FILENAME} is {shown(repr(architecture))}; "
            f"registered: {', '.join(sorted(registry))}"
            f"{did_you_mean(shown(architecture), registry)}"
        )
    if "dtype" not in config:
        raise CheckpointError(f"dtype is missing in {path / SAE_CFG_FILENAME}")
    _require_size(path, config, shapes)
    sae_class, config_class = registry[architecture]
    try:
        cfg = config_class.from_dict({**config, "device": "meta"})
        check_fields(cfg)
        sae = sae_class(cfg)
        expected = dict(sae.state_dict())
        sae.process_state_dict_for_saving(expected)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{path / SAE_CFG_FILENAME} does not describe an SAE of architecture {architecture}: "
            f"{e}"
        ) from e
    require_tensors(
        shapes, {name: list(t.shape) for name, t in expected.items()}, architecture, path
    )
    if "k" in vars(cfg) and not 1 <= vars(cfg)["k"] <= cfg.d_sae:
        raise CheckpointError(
            f"k={vars(cfg)['k']!r} in {path / SAE_CFG_FILENAME} is not allowed: 1 to {cfg.d_sae}"
        )
    _require_seal(path)
    return cfg


def _require_size(path: Path, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    """Compare the sizes in `cfg.json` with the weights before anything of that size is built."""
    d_in, d_sae = config.get("d_in"), config.get("d_sae")
    held = sum(math.prod(shape) for shape in shapes.values())
    if isinstance(d_in, int) and isinstance(d_sae, int) and d_in * d_sae > held:
        raise CheckpointError(
            f"d_in={d_in} and d_sae={d_sae} in {path / SAE_CFG_FILENAME} do not fit "
            f"{SAE_WEIGHTS_FILENAME}, which holds {held} numbers in all"
        )


def _require_finite(sae: SAE[Any], path: Path) -> SAE[Any]:
    for name, tensor in sae.state_dict().items():
        # An infinite threshold switches its side off; nothing else is ever infinite.
        finite = not tensor.isnan().any() if "threshold" in name else tensor.isfinite().all()
        if not finite:
            raise CheckpointError(f"{name} of {path} holds NaN or infinite values")
    return sae


def _folded(path: Path, cfg: SAEConfig, device: str, dtype: str | None) -> SAE[Any]:
    """The SAE of a training checkpoint, for raw activations."""
    scaler, file = ActivationScaler(), path / ACTIVATION_SCALER_CFG_FILENAME
    try:
        scaler.load(file)
        sae = TrainingSAE.load_from_disk(path, device=device, dtype=dtype)
        factor, whitening = scaler.scaling_factor, scaler.whitening
        if factor is not None:
            require_number(factor, "scaling_factor", 0, exclusive=True)
            sae.fold_activation_norm_scaling_factor(factor)
        if whitening is not None:
            sae.fold_activation_whitening(
                mean=whitening.mean,
                whitening_matrix=whitening.matrix,
                unwhitening_matrix=whitening.inverse_matrix,
            )
        scales = ("expected_average_only_in", "covariance_whitening")
        if cfg.normalize_activations in scales and factor is None and whitening is None:
            raise ValueError("it holds neither a scaling factor nor a whitening")
        return inference_form(sae)
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} with {file.name} cannot be read: {error}") from error


def require_tensors(
    found: dict[str, list[int]], expected: dict[str, list[int]], architecture: str, path: Path
) -> None:
    """Compare the tensors of a checkpoint, name to shape, with those of its architecture.

    Raises:
        CheckpointError: naming the missing, extra and misshapen tensors.
    """
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    extra = sorted(found.keys() - expected.keys())
    problems += [f"{shown(name)} does not belong" for name in extra]
    problems += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if more := problems[_PROBLEMS:]:
        problems = [*problems[:_PROBLEMS], f"and {len(more)} more"]
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
        config = load_json(file)
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
        open_regular(file).close()
        with safe_open(file, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            for name, tensor in slices.items():
                if tensor.get_dtype() not in _DTYPES:
                    raise CheckpointError(
                        f"{shown(name)} in {file} is of type {tensor.get_dtype()}; weights are "
                        f"real numbers of type {', '.join(_DTYPES)}"
                    )
            return {name: tensor.get_shape() for name, tensor in slices.items()}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} holds no {SAE_WEIGHTS_FILENAME}; weights are read from safetensors only"
        ) from error
    except (OSError, SafetensorError, DataError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
