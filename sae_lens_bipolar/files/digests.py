"""Which SAE a measurement is of: the digest of its configuration and weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import CheckpointError
from sae_lens_bipolar.files.atomic import sha256_of
from sae_lens_bipolar.files.names import SAE_CONFIG, SAE_WEIGHTS

DIGEST = "digest"  # key of a measurement (a row of the summary, a census) that holds it


def checkpoint_digest(path: str | Path) -> str:
    """SHA-256 of a checkpoint's configuration and weights: what a measurement of it is of.

    Raises:
        CheckpointError: if one of the two files is missing.
    """
    path, digest = Path(path), hashlib.sha256()
    for name in (SAE_CONFIG, SAE_WEIGHTS):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} holds no {name}; weights are read from safetensors only")
        digest.update(sha256_of(path / name).encode())
    return digest.hexdigest()


def is_of(measured: Mapping[str, Any], path: str | Path) -> bool:
    """Whether a measurement was made on the SAE in `path`; one that names no digest was not."""
    return measured.get(DIGEST) == checkpoint_digest(path)
