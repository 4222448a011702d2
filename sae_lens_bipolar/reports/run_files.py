"""Read and check the files of a run, one function per file; errors name the file and the key."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.fields import (
    a_list,
    an_object,
    check_field,
    check_number,
    check_string,
    kind_of,
    load_json,
    load_yaml,
    parse_json,
    read_lines,
    required,
)

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


def read_config(file: Path) -> dict[str, Any]:
    config = load_yaml(file)
    if not isinstance(config, dict):
        raise DataError(f"{file}: expected a mapping, found {kind_of(config)}")
    return config


def read_environment(file: Path) -> dict[str, Any]:
    environment = an_object(load_json(file), str(file))
    packages = environment.setdefault("packages", {})
    an_object(packages, f"{file}: packages")
    return environment


def read_metrics(file: Path, notes: list[str]) -> list[dict[str, Any]]:
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


def read_summary(file: Path) -> list[dict[str, Any]]:
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


def read_census(file: Path) -> dict[str, Any]:
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


def read_latents(file: Path) -> dict[str, Any]:
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
