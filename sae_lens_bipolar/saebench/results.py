"""Numbers from SAEBench's result files, as rows, a CSV file and a Markdown table."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json, write_text
from sae_lens_bipolar.saebench.suites.registry import SUITES

COLUMNS = (
    *("sae", "architecture", "model", "hook", "suite", "protocol"),
    *("metric", "budget", "value", "seed"),
)
CSV_FILE = Path("results/saebench.csv")
TABLE_FILE = Path("results/saebench.md")
Metric = tuple[str, int | None, float]  # name, budget (n or k), value


def metrics_of(suite: str, file: Path) -> list[Metric]:
    """The numbers of one SAEBench result file; what is absent, NaN or null is left out."""
    found = SUITES[suite].read(read_json(file))
    return [(name, budget, float(value)) for name, budget, value in found if _is_number(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def write_rows(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `results/saebench.csv` and `results/saebench.md` below `output`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / CSV_FILE, text.getvalue())
    write_text(output / TABLE_FILE, markdown(rows))


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a benchmark's output directory, or of a CSV file: one dict per number.

    Keys are the CSV's columns; `budget` (the n or k of a metric) is an int or None.

    Raises:
        ConfigError: if there is no such file, or it has other columns.
    """
    path = Path(path)
    file = path / CSV_FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: run `sae-lens-bipolar bench` first")
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{file} has columns {reader.fieldnames}, expected {list(COLUMNS)}")
        return [
            {
                **row,
                "budget": int(row["budget"]) if row["budget"] else None,
                "value": float(row["value"]),
                "seed": int(row["seed"]),
            }
            for row in reader
        ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: one headline number per suite, and every n and k.

    The protocol that is right for signed latents is marked * in the first.
    """
    return f"{headline_table(rows)}\n\n{budget_table(rows)}\n"


def headline_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per SAE and protocol, one column per suite; * marks a suite's headline protocol."""
    suites = [name for name in SUITES if any(row["suite"] == name for row in rows)]
    names = [SUITES[suite].headline.column for suite in suites]
    lines = _header(["SAE", "architecture", "model", "hook", "protocol", *names])
    for key, group in _grouped(rows, ("sae", "architecture", "model", "hook", "protocol")).items():
        cells = [_headline(suite, group, key[-1]) for suite in suites]
        lines.append(_line([*map(str, key), *cells]))
    return "\n".join(lines)


def _headline(suite: str, group: Sequence[Mapping[str, Any]], protocol: str) -> str:
    headline = SUITES[suite].headline
    key = (suite, headline.metric, headline.budget)
    for row in group:
        if (row["suite"], row["metric"], row["budget"]) == key:
            return f"{headline.shown(row['value']):.3f}{'*' * (protocol == headline.protocol)}"
    return ""


def budget_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per SAE, suite, protocol and metric that has a budget; one column per n or k."""
    rows = [row for row in rows if row["budget"] is not None]
    budgets = sorted({row["budget"] for row in rows})
    lines = _header(["SAE", "suite", "protocol", "metric", *map(str, budgets)])
    for key, group in _grouped(rows, ("sae", "suite", "protocol", "metric")).items():
        values = {row["budget"]: f"{row['value']:.3f}" for row in group}
        lines.append(_line([*map(str, key), *(values.get(budget, "") for budget in budgets)]))
    return "\n".join(lines)


def _grouped(
    rows: Iterable[Mapping[str, Any]], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _header(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
