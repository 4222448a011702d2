"""Leaving out measurements of other weights than the run holds now, with notes that say so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import BipolarError
from sae_lens_bipolar.files.digests import DIGEST, checkpoint_digest
from sae_lens_bipolar.files.names import CENSUS, CHECKPOINTS, LATENTS, SUMMARY
from sae_lens_bipolar.files.paths import inside


def of_these_weights(
    run_dir: Path,
    summary: list[dict[str, Any]],
    census: dict[str, dict[str, Any]],
    latents: dict[str, dict[str, Any]],
) -> tuple[set[str], list[str]]:
    """Names of SAEs with a measurement of other weights than `checkpoints/NAME`, and notes on it.

    A measurement names its weights by their digest. One without a digest, as older versions wrote
    it, cannot be checked, and a note names it; one without a checkpoint in the directory cannot
    be checked either.
    """
    others: set[str] = set()
    notes: list[str] = []
    unnamed: list[str] = []
    rows = [(row["name"], SUMMARY, row) for row in summary]
    rows += [(name, f"{CENSUS}/{name}.json", found) for name, found in census.items()]
    # Latents are described from the checkpoint and the census: they may name no digest.
    rows += [(n, f"{LATENTS}/{n}.json", found) for n, found in latents.items() if DIGEST in found]
    now: dict[str, str | None] = {}
    for name, file, measured in rows:
        if name not in now:
            now[name] = _digest(run_dir, name)
        if now[name] is None:
            continue
        if DIGEST not in measured:
            unnamed.append(name)
        elif measured[DIGEST] != now[name]:
            others.add(name)
            notes.append(
                f"{file} was measured on other weights of {name} than {CHECKPOINTS}/{name} holds "
                "now: no result of this SAE is shown. Run the command of this run again to "
                "measure it"
            )
    if unnamed:
        names = ", ".join(dict.fromkeys(unnamed))
        notes.append(
            f"the results of {names} do not say which weights they were measured on (an older "
            f"version wrote them), so they are shown without comparing them with {CHECKPOINTS}/"
        )
    return others, notes


def _digest(run_dir: Path, name: str) -> str | None:
    folder = inside(run_dir, f"{CHECKPOINTS}/{name}")
    if not folder.is_dir():
        return None
    try:
        return checkpoint_digest(folder)
    except BipolarError:  # incomplete: not what was measured
        return ""


def without(names: set[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """`found`, by the name of the SAE, without `names`."""
    return {name: value for name, value in found.items() if name not in names}
