"""The run's figures that belong to the weights that are published, and no others.

Each row of `results/summary.json` names the digest of the checkpoint it was measured on. A row of
other weights under the same name stops the publishing; a row that names no digest (written before
they did) is neither shown nor uploaded, since nobody can say what it is of.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.digests import DIGEST, checkpoint_digest
from sae_lens_bipolar.files.fields import a_list, an_object, check_string, load_json
from sae_lens_bipolar.files.names import CENSUS, METRICS_FILE, SUMMARY
from sae_lens_bipolar.files.paths import inside
from sae_lens_bipolar.files.redaction import without_folders
from sae_lens_bipolar.hub.copies import copy_metrics, write_clean_json, write_mapping
from sae_lens_bipolar.runs.sources import Source

Row = dict[str, Any]


class Figures(NamedTuple):
    """What a run measured of the published SAEs."""

    rows: dict[str, Row]  # published id -> its row, as the run wrote it
    unrecorded: list[str]  # ids whose row does not say of which weights it is


def figures_of(run_dir: Path, saes: Mapping[str, Source]) -> Figures:
    """The rows of `results/summary.json` that were measured on `saes` (published id -> SAE).

    Raises:
        DataError: if the file is damaged, or a row was measured on other weights of that name.
    """
    file = run_dir / SUMMARY
    if not file.is_file():
        return Figures({}, [])
    rows = [
        an_object(row, f"{file}[{i}]") for i, row in enumerate(a_list(load_json(file), str(file)))
    ]
    for i, row in enumerate(rows):
        check_string(row, "name", f"{file}[{i}]")
    found = Figures({}, [])
    for id, sae in saes.items():
        named = [row for row in rows if row["name"] == sae.run_name]
        # A checkpoint may have been renamed since; two of equal weights are told apart by name.
        row = next((r for r in [*named, *rows] if r.get(DIGEST) == sae.digest), None)
        if row is not None:
            found.rows[id] = row
        elif any(r.get(DIGEST) is None for r in named):
            found.unrecorded.append(id)
        elif named:
            raise DataError(
                f"{file} was measured on other weights of {sae.run_name!r} than {sae.path} holds: "
                "restore that checkpoint, or move the file away and measure again by running the "
                "run's command"
            )
    return found


def stage_figures(
    run_dir: Path, figures: Figures, folder: Path, prefix: str
) -> list[dict[str, Any]]:
    """Write what the run measured of the published weights, and return the rows of the summary.

    Names become ids, and digests those of the published checkpoints.
    """
    target, staged = folder / prefix, []
    for id, row in figures.rows.items():
        digest = checkpoint_digest(folder / id)
        staged.append(without_folders({**row, "name": id, DIGEST: digest}))
        census = inside(run_dir, f"{CENSUS}/{row['name']}.json")
        if census.is_file():
            found = an_object(load_json(census), str(census))
            if found.get(DIGEST) == row[DIGEST]:
                short = id.removeprefix(prefix).lstrip("/")
                copied = target / CENSUS / f"{short}.json"
                write_mapping(copied, {**found, DIGEST: digest}, census)
    if staged:
        write_clean_json(target / SUMMARY, staged, run_dir / SUMMARY)
    names = {row["name"]: id for id, row in figures.rows.items()}
    copy_metrics(run_dir / METRICS_FILE, target / METRICS_FILE, names)
    return staged
