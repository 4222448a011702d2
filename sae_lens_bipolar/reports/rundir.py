"""Read a run directory and check it: the only place where reports touch a run's files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.fields import (
    check_name,
)
from sae_lens_bipolar.files.names import (
    CENSUS,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    LATENTS,
    METRICS_FILE,
    SUMMARY,
)
from sae_lens_bipolar.files.paths import inside
from sae_lens_bipolar.reports.run_files import (
    read_census,
    read_config,
    read_environment,
    read_latents,
    read_metrics,
    read_summary,
)
from sae_lens_bipolar.reports.weights import of_these_weights, without


@dataclass(frozen=True)
class Run:
    """What a run directory holds; an absent file is named in `missing`, its field is empty."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]  # in the order of tokens seen, one line per step and SAE
    summary: list[dict[str, Any]]
    census: dict[str, dict[str, Any]]  # by the name of the SAE
    latents: dict[str, list[dict[str, Any]]]
    missing: tuple[str, ...]
    notes: tuple[str, ...]  # sentences about what was found and left out

    def sae_names(self) -> list[str]:
        """Names of the SAEs: the summary's order, then those only other files know."""
        names = [row["name"] for row in self.summary]
        others = [line["sae"] for line in self.metrics] + [*self.census, *self.latents]
        return list(dict.fromkeys([*names, *others]))


def read_run(run_dir: str | Path) -> Run:
    """Read and check every result file under `run_dir`.

    Results that name other weights than the run's checkpoints hold are left out; a note says so.

    Raises:
        DataError: if the directory does not exist, holds no result at all, or one of its files is
            empty, malformed, too large or not a regular file; names the file and the key.
        UnsafePathError: if one of its files is a link that leaves the directory.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give the folder of a run, such as runs/demo")
    missing: list[str] = []
    notes: list[str] = []

    def present(name: str) -> Path | None:
        file = inside(path, name)
        if file.exists():
            return file
        missing.append(name)
        return None

    def present_many(folder: str) -> Iterator[tuple[str, Path]]:
        files = sorted(inside(path, folder).glob("*.json"))
        if not files:
            missing.append(f"{folder}/*.json")
        for file in files:
            check_name(file.stem, f"{path / folder}: the name of a file")
            yield file.stem, inside(path, f"{folder}/{file.name}")

    config = read_config(file) if (file := present(CONFIG_FILE)) else {}
    environment = read_environment(file) if (file := present(ENVIRONMENT_FILE)) else {}
    metrics = read_metrics(file, notes) if (file := present(METRICS_FILE)) else []
    summary = read_summary(file) if (file := present(SUMMARY)) else []
    census = {name: read_census(file) for name, file in present_many(CENSUS)}
    described = {name: read_latents(file) for name, file in present_many(LATENTS)}
    if not (metrics or summary or census or described):
        raise DataError(
            f"{path} holds no results: expected {METRICS_FILE}, {SUMMARY}, "
            f"{CENSUS}/*.json or {LATENTS}/*.json"
        )
    others, said = of_these_weights(path, summary, census, described)
    summary = [row for row in summary if row["name"] not in others]
    census, described = without(others, census), without(others, described)
    metrics = [line for line in metrics if line["sae"] not in others]
    latents = {name: found["latents"] for name, found in described.items()}
    notes += said
    return Run(
        path, config, environment, metrics, summary, census, latents, tuple(missing), tuple(notes)
    )


def find_setting(config: Mapping[str, Any], *keys: str) -> list[Any]:
    """Values in a nested configuration under the first of `keys` found anywhere, shallow first.

    Each value is given once; null is passed over. Empty when none of the keys is there.
    """
    for key in keys:
        found: list[Any] = []
        level: list[Any] = [config]
        while level:
            found += [node[key] for node in level if isinstance(node, dict) and key in node]
            level = [child for node in level for child in _children(node)]
        distinct = [v for i, v in enumerate(found) if v is not None and v not in found[:i]]
        if distinct:
            return distinct
    return []


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
