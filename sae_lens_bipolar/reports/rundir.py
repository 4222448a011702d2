"""Read a run directory and check it: the only place where reports touch a run's files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.fields import (
    a_list,
    an_object,
    check_field,
    check_name,
    check_number,
    check_string,
    kind_of,
    load_json,
    load_yaml,
    parse_json,
    read_lines,
    required,
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
from sae_lens_bipolar.reports.weights import of_these_weights, without

SUMMARY_NUMBERS = (
    "d_in",
    "d_sae",
    "l0",
    "nmse",
    "r2",
    "loss_recovered",
    "dead_fraction",
    "bipolar_fraction",
    "n_train_tokens",
    "n_eval_tokens",
    "seed",
)
SINK_NUMBERS = ("l0", "nmse", "r2", "loss_recovered")
CENSUS_LISTS = (
    "positive_rate",
    "negative_rate",
    "positive_mean",
    "negative_mean",
    "positive_max",
    "negative_max",
)


@dataclass(frozen=True)
class Run:
    """What a run directory holds; a file that is absent is named in `missing` and left empty."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]  # in the order of tokens seen, one line per step and SAE
    summary: list[dict[str, Any]]
    census: dict[str, dict[str, Any]]  # by the name of the SAE
    latents: dict[str, list[dict[str, Any]]]
    missing: tuple[str, ...]
    notes: tuple[str, ...]  # what was found and passed over, in words

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

    config = _read_config(file) if (file := present(CONFIG_FILE)) else {}
    environment = _read_environment(file) if (file := present(ENVIRONMENT_FILE)) else {}
    metrics = _read_metrics(file, notes) if (file := present(METRICS_FILE)) else []
    summary = _read_summary(file) if (file := present(SUMMARY)) else []
    census = {name: _read_census(file) for name, file in present_many(CENSUS)}
    described = {name: _read_latents(file) for name, file in present_many(LATENTS)}
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


def _read_config(file: Path) -> dict[str, Any]:
    config = load_yaml(file)
    if not isinstance(config, dict):
        raise DataError(f"{file}: expected a mapping, found {kind_of(config)}")
    return config


def _read_environment(file: Path) -> dict[str, Any]:
    environment = an_object(load_json(file), str(file))
    packages = environment.setdefault("packages", {})
    an_object(packages, f"{file}: packages")
    return environment


def _read_metrics(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for number, row in enumerate(read_lines(file), start=1):
        where = f"{file}, line {number}"
        if not row.strip():
            continue
        try:
            line = parse_json(row, where)
        except DataError:
            if not row.endswith("\n"):  # the writer was stopped in the middle of the last line
                notes.append(
                    f"{file.name}: line {number} was cut off while being written; left out"
                )
                continue
            raise
        an_object(line, where)
        check_string(line, "sae", where)
        for key in ("step", "n_tokens"):
            check_number(required(line, key, where), f"{where}: {key!r}")
        check_field(line, "l0", where)
        for key in ("loss", "nmse", "mse_loss"):
            check_field(line, key, where, optional=True)
        lines[line["sae"], line["step"]] = (
            line  # a resumed run logs some steps again: keep the last
        )
    if not lines:
        raise DataError(f"{file}: holds no line; expected one JSON object per step and SAE")
    return sorted(lines.values(), key=lambda line: line["n_tokens"])


def _read_summary(file: Path) -> list[dict[str, Any]]:
    rows = a_list(load_json(file), str(file))
    if not rows:
        raise DataError(f"{file}: holds no SAE; expected one object per SAE")
    for i, row in enumerate(rows):
        where = f"{file}[{i}]"
        an_object(row, where)
        row.setdefault("name", row.get("architecture"))
        check_string(row, "name", where)
        check_string(row, "architecture", where)
        for key in SUMMARY_NUMBERS:
            check_field(row, key, where, nullable=True)
        sinks = row.get("with_sinks")
        if sinks is not None:
            an_object(sinks, f"{where}.with_sinks")
            for key in SINK_NUMBERS:
                check_field(sinks, key, f"{where}.with_sinks", nullable=True)
        for key in ("n_sink_tokens", "train_seconds"):
            check_field(row, key, where, optional=True)
    names = [row["name"] for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file}: name {twice[0]!r} stands for more than one SAE")
    return rows


def _read_census(file: Path) -> dict[str, Any]:
    where = str(file)
    census = an_object(load_json(file), where)
    check_field(census, "n_tokens", where)
    d_sae = len(a_list(required(census, "positive_rate", where), f"{where}: positive_rate"))
    for key in CENSUS_LISTS:
        # Only the two rates are drawn, so only they must be there.
        if key not in census and not key.endswith("_rate"):
            continue
        values = a_list(required(census, key, where), f"{where}: {key}")
        if len(values) != d_sae:
            raise DataError(f"{where}: {key} has {len(values)} values, positive_rate has {d_sae}")
        for i, value in enumerate(values):
            check_number(value, f"{where}: {key}[{i}]")
            if key.endswith("_rate") and not 0 <= value <= 1:
                raise DataError(f"{where}: {key}[{i}] is {value!r}; a rate lies in [0, 1]")
    return census


def _read_latents(file: Path) -> dict[str, Any]:
    found = an_object(load_json(file), str(file))
    latents = a_list(required(found, "latents", str(file)), f"{file}: latents")
    for i, latent in enumerate(latents):
        where = f"{file}: latents[{i}]"
        an_object(latent, where)
        for key in ("index", "positive_rate", "negative_rate"):
            check_field(latent, key, where)
        _check_histogram(
            an_object(required(latent, "histogram", where), f"{where}.histogram"), where
        )
        contexts = an_object(required(latent, "contexts", where), f"{where}.contexts")
        for side in ("positive", "negative"):
            side_where = f"{where}.contexts.{side}"
            for j, context in enumerate(a_list(required(contexts, side, side_where), side_where)):
                _check_context(an_object(context, f"{side_where}[{j}]"), f"{side_where}[{j}]")
        for key in ("raises", "lowers"):
            for j, pair in enumerate(a_list(required(latent, key, where), f"{where}.{key}")):
                if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
                    raise DataError(f"{where}.{key}[{j}] is {pair!r}; expected [token, number]")
                check_number(pair[1], f"{where}.{key}[{j}][1]")
    return found


def _check_histogram(histogram: dict[str, Any], where: str) -> None:
    where = f"{where}.histogram"
    lists = {
        key: a_list(required(histogram, key, where), f"{where}.{key}")
        for key in ("edges", "counts")
    }
    for key, values in lists.items():
        for i, value in enumerate(values):
            check_number(value, f"{where}.{key}[{i}]")
    edges, counts = lists["edges"], lists["counts"]
    if len(edges) != len(counts) + 1 or not counts:
        raise DataError(
            f"{where}: {len(edges)} edges for {len(counts)} counts; expected one edge more, "
            "and at least one count"
        )
    if any(b <= a for a, b in pairwise(edges)):
        raise DataError(f"{where}.edges do not increase")
    if any(count < 0 for count in counts):
        raise DataError(f"{where}.counts holds a negative number")


def _check_context(context: dict[str, Any], where: str) -> None:
    tokens = a_list(required(context, "tokens", where), f"{where}.tokens")
    activations = a_list(required(context, "activations", where), f"{where}.activations")
    if len(tokens) != len(activations) or not tokens:
        raise DataError(
            f"{where}: {len(tokens)} tokens and {len(activations)} activations; "
            "expected the same number, at least one"
        )
    for i, (token, activation) in enumerate(zip(tokens, activations, strict=True)):
        if not isinstance(token, str):
            raise DataError(f"{where}.tokens[{i}] is {kind_of(token)}; expected a string")
        check_number(activation, f"{where}.activations[{i}]")
    peak = required(context, "peak", where)
    if not isinstance(peak, int) or not 0 <= peak < len(tokens):
        raise DataError(f"{where}.peak is {peak!r}; expected a position in 0..{len(tokens) - 1}")


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
