"""SAEBench's results of the SAEs that are published: gathered from their run, and as the card shows
them.

What `bench` wrote into a folder of the run's directory (`bench RUN --output RUN/bench`) goes to the
Hub with the run: one table of all numbers, and each folder's configuration and command.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.fields import (
    an_object,
    check_number,
    check_string,
    load_json,
    load_yaml,
)
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE
from sae_lens_bipolar.files.redaction import without_folders
from sae_lens_bipolar.hub.quoting import ABSENT, Quoted, code, codes
from sae_lens_bipolar.runs.sources import Source
from sae_lens_bipolar.saebench import store
from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.options import PROTOCOLS
from sae_lens_bipolar.saebench.suites.record import Headline
from sae_lens_bipolar.saebench.suites.registry import SUITES


class Bench(NamedTuple):
    """What `bench` wrote into one folder of a run, of the published SAEs."""

    folder: str  # its name
    rows: list[dict[str, Any]]  # as in results/saebench.csv, `sae` the published id
    config: dict[str, Any]  # its config.yaml
    command: str | None  # of its environment.json


def gather(run_dir: Path, saes: Mapping[str, Source]) -> list[Bench]:
    """The numbers in folders of `run_dir` that `bench` wrote.

    Args:
        run_dir: of the run, or of one SAE; holds no link that leaves it.
        saes: published id -> SAE; rows of other SAEs are left out.

    Raises:
        DataError: if a number was measured on other weights of the same name, stands in two folders
            or is damaged.
    """
    outputs = [path.parent for path in sorted(run_dir.glob(f"*/{store.RUNS}")) if path.is_dir()]
    found = {output: _published_rows(output, saes) for output in outputs}
    found = {output: rows for output, rows in found.items() if rows}
    _refuse_twice({output.name: rows for output, rows in found.items()})
    return [_bench(output, rows) for output, rows in found.items()]


def _bench(output: Path, rows: list[dict[str, Any]]) -> Bench:
    config, environment = output / CONFIG_FILE, output / ENVIRONMENT_FILE
    settings = an_object(load_yaml(config), str(config)) if config.is_file() else {}
    origin = an_object(load_json(environment), str(environment)) if environment.is_file() else {}
    command = origin.get("command")
    said = str(without_folders(command)) if command else None
    return Bench(output.name, rows, without_folders(settings), said)


def _published_rows(output: Path, saes: Mapping[str, Source]) -> list[dict[str, Any]]:
    ids: dict[str, str] = {}
    for file in sorted(output.glob(f"{store.RUNS}/*/*/*/{store.RECORD}")):
        name, digest = _measured(file)
        same = [id for id, sae in saes.items() if sae.digest == digest]
        if same:
            ids[name] = same[0]
        elif name in [sae.name for sae in saes.values()]:
            raise DataError(
                f"{file} was measured on other weights of {name}: run `bench` again with another "
                "--output, and move this folder out of the run's directory"
            )
    return [row | {"sae": ids[row["sae"]]} for row in store.rows_of(output) if row["sae"] in ids]


def _measured(file: Path) -> tuple[str, str]:
    """Name and digest of the SAE a finished run measured, after a check of its record."""
    try:
        record = load_json(file)
        for key in ("sae", "architecture", "model", "hook", "suite"):
            check_string(an_object(record, str(file)), key, str(file))
        fits = record["suite"] in SUITES and {*record["protocols"]} <= {*PROTOCOLS}
        fits = fits and type(record["seed"]) is int
        for metric, budget, value in record["metrics"]:
            check_number(value, f"{file}: {metric!r}", finite=False)
            fits = fits and isinstance(metric, str) and type(budget) in (int, type(None))
        digest = record["identity"]["SAE"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is not a record of `bench`: {error!r}") from error
    if not fits:
        raise DataError(
            f"{file} is not a record of `bench`: a suite, protocol, seed or metric of it"
        )
    return record["sae"], digest


def _refuse_twice(rows_by_output: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    where: dict[tuple[Any, ...], str] = {}
    keys = ("sae", "suite", "protocol", "metric", "budget", "seed")
    for name, rows in rows_by_output.items():
        for row in rows:
            first = where.setdefault(tuple(row[key] for key in keys), name)
            if first != name:
                raise DataError(
                    f"{first} and {name} both hold {row['suite']} of {row['sae']} with seed "
                    f"{row['seed']}: move one of them out of the run's directory"
                )


def saebench_section(
    benches: Sequence[Bench], saes: Sequence[str], corpus: str | None
) -> dict[str, Any]:
    """What the card says of SAEBench; `table` is empty if there are no numbers.

    Args:
        benches: what `gather` found.
        saes: published ids to show.
        corpus: what the SAEs were trained on.
    """
    rows = [row for bench in benches for row in bench.rows]
    suites = {str(row["suite"]) for row in rows if row["sae"] in saes}
    defaults = vars(BenchConfig())
    options = {
        (field.name, str(bench.config[field.name]))
        for bench in benches
        for field in fields(BenchConfig)
        if field.name in bench.config
        and _decides(field.name, suites)
        and _plain(bench.config[field.name]) != _plain(defaults[field.name])
    }
    folders = sorted(value for name, value in options if name == "data_folder")
    return {
        "table": headline_markdown(rows, saes),
        "seeds": ", ".join(map(str, sorted({row["seed"] for row in rows}))),
        "not_run": ", ".join(one.label for name, one in SUITES.items() if name not in suites),
        "own_settings": not options,
        "data_folders": codes(folders),
        "seen_corpus": "core" in suites and ("core_dataset", corpus) in options,
    }


def _decides(option: str, suites: Iterable[str]) -> bool:
    """Whether an option has a say in the numbers of `suites`."""
    measured = [SUITES[suite] for suite in suites]
    if option == "data_folder":
        return any(suite.labelled for suite in measured)
    return option == "context_length" or any(option in suite.own_options for suite in measured)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def headline_markdown(rows: Sequence[Mapping[str, Any]], saes: Sequence[str]) -> Quoted:
    """The number that stands for each suite: a row per suite and protocol, a column per SAE.

    The protocol that is right for signed latents comes first, marked *; one row stands for both
    where they agree. Higher is better everywhere: absorption is 1 - the fraction. Seeds are
    averaged.

    Returns:
        The table, in Markdown; "" if no row belongs to one of `saes`.
    """
    shown = [sae for sae in saes if any(row["sae"] == sae for row in rows)]
    lines = []
    for name, suite in SUITES.items():
        main = suite.headline
        key = (name, main.metric, main.budget)
        of_suite = [row for row in rows if (row["suite"], row["metric"], row["budget"]) == key]
        cells = {
            protocol: [_cell(main, of_suite, sae, protocol) for sae in shown]
            for protocol in sorted(PROTOCOLS, key=lambda one, right=main.protocol: one != right)
        }
        label = main.measure
        measured = {p: values for p, values in cells.items() if set(values) - {ABSENT}}
        if len(measured) == 2 and measured["signed"] == measured["split"]:
            measured = {"both": measured["signed"]}
        for protocol, values in measured.items():
            lines.append([label, protocol + " *" * (protocol == main.protocol), *values])
            label = ""
    if not shown or not lines:
        return Quoted("")
    heads = ["suite", "protocol", *map(code, shown)]
    rule = [":---", ":---", *("---:" for _ in shown)]
    return Quoted("".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *lines)))


def _cell(main: Headline, rows: Iterable[Mapping[str, Any]], sae: str, protocol: str) -> str:
    values = [row["value"] for row in rows if (row["sae"], row["protocol"]) == (sae, protocol)]
    values = [value for value in values if math.isfinite(value)]
    return f"{main.shown(fmean(values)):.3f}" if values else ABSENT
