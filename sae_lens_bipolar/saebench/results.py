"""Numbers from SAEBench's result files, as rows, a CSV file and a Markdown table."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json, write_text

COLUMNS = (
    *("sae", "architecture", "model", "hook", "suite", "protocol"),
    *("metric", "budget", "value", "seed"),
)
CSV_FILE = Path("results/saebench.csv")
TABLE_FILE = Path("results/saebench.md")
Metric = tuple[str, int | None, float]  # name, budget (n or k), value

# suite -> (metric, budget) that stands for it, and the protocol that is right for signed latents
HEADLINES: dict[str, tuple[str, int | None, str]] = {
    "absorption": ("mean_absorption_fraction_score", None, "split"),
    "scr": ("scr_metric", 20, "signed"),
    "tpp": ("tpp_total_metric", 20, "split"),
    "ravel": ("disentanglement_score", None, "signed"),
    "unlearning": ("unlearning_score", None, "split"),
    "sparse_probing": ("sae_top_k_test_accuracy", 5, "signed"),
    "core": ("ce_loss_score", None, "split"),
}


def metrics_of(suite: str, file: Path) -> list[Metric]:
    """The numbers of one SAEBench result file; what is absent, NaN or null is left out."""
    result = read_json(file)
    found = _READERS[suite](result)
    return [(name, budget, float(value)) for name, budget, value in found if _is_number(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _flat(result: Mapping[str, Any]) -> list[tuple[str, int | None, Any]]:
    categories = result["eval_result_metrics"].values()
    return [(name, None, value) for category in categories for name, value in category.items()]


def _unlearning(result: Mapping[str, Any]) -> list[tuple[str, int | None, Any]]:
    score = result["eval_result_metrics"]["unlearning"]["unlearning_score"]
    # The score is 1 - accuracy; the paper reports "1 - original": both, rather than a guess.
    return [("unlearning_score", None, score), ("min_wmdp_accuracy", None, 1 - score)]


def _core(result: Mapping[str, Any]) -> list[tuple[str, int | None, Any]]:
    # `explained_variance` is no such thing in 0.6.0 (evals/core/main.py:585-623); NaN is stored
    # as -1, a value no metric but a cosine or score at its very end takes.
    return [
        (name, budget, value)
        for name, budget, value in _flat(result)
        if name != "explained_variance" and value != -1
    ]


def _scr(result: Mapping[str, Any]) -> list[tuple[str, int | None, Any]]:
    found = result["eval_result_metrics"]["scr_metrics"]
    return [_with_budget(name, "_threshold_", value) for name, value in found.items()]


def _tpp(result: Mapping[str, Any]) -> list[tuple[str, int | None, Any]]:
    # The JSON's metrics keep some n only; the unstructured part has all that were run.
    datasets = result["eval_result_unstructured"].values()
    per_dataset = [_mean(classes.values()) for classes in datasets]
    found = _mean(per_dataset)
    rows = []
    for name, value in found.items():
        n, _, kind = name.removeprefix("tpp_threshold_").partition("_")
        rows.append((f"tpp_{kind}", int(n), value))
    return rows


def _mean(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    parts = list(parts)
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def _probing(result: Mapping[str, Any]) -> list[tuple[str, int | None, Any]]:
    rows: list[tuple[str, int | None, Any]] = []
    for name, _, value in _flat(result):
        side, is_top, rest = name.partition("_top_")
        if is_top:
            k = int(rest.split("_")[0])
            rows.append((f"{side}_top_k_test_accuracy", k, value))
        else:
            rows.append((name, None, value))
    return rows


def _with_budget(name: str, mark: str, value: Any) -> tuple[str, int | None, Any]:
    metric, _, budget = name.partition(mark)
    return metric, int(budget), value


_READERS: dict[str, Callable[[Mapping[str, Any]], list[tuple[str, int | None, Any]]]] = {
    "absorption": _flat,
    "scr": _scr,
    "tpp": _tpp,
    "ravel": _flat,
    "unlearning": _unlearning,
    "sparse_probing": _probing,
    "core": _core,
}


def write_rows(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `results/saebench.csv` and `results/saebench.md` below `output`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / CSV_FILE, text.getvalue())
    write_text(output / TABLE_FILE, markdown(rows))


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a benchmark's output directory, or of a CSV file: one dict a number.

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
    """Two tables: one headline number a suite, and every n and k.

    The protocol that is right for signed latents is marked * in the first.
    """
    return f"{headline_table(rows)}\n\n{budget_table(rows)}\n"


def headline_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line an SAE and protocol, one column a suite; * marks a suite's headline protocol."""
    suites = [suite for suite in HEADLINES if any(row["suite"] == suite for row in rows)]
    names = [_column(suite) for suite in suites]
    lines = _header(["SAE", "architecture", "model", "hook", "protocol", *names])
    for key, group in _grouped(rows, ("sae", "architecture", "model", "hook", "protocol")).items():
        cells = [_headline(suite, group, key[-1]) for suite in suites]
        lines.append(_line([*map(str, key), *cells]))
    return "\n".join(lines)


def _column(suite: str) -> str:
    metric, budget, _ = HEADLINES[suite]
    if suite == "absorption":
        return "absorption (1 - mean fraction)"
    mark = {"scr": f" (n={budget})", "tpp": f" (n={budget})", "sparse_probing": f" (k={budget})"}
    return suite + mark.get(suite, f" ({metric})")


def _headline(suite: str, group: Sequence[Mapping[str, Any]], protocol: str) -> str:
    metric, budget, headline = HEADLINES[suite]
    for row in group:
        if row["suite"] == suite and row["metric"] == metric and row["budget"] == budget:
            value = 1 - row["value"] if suite == "absorption" else row["value"]
            return f"{value:.3f}{'*' if protocol == headline else ''}"
    return ""


def budget_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line an SAE, suite, protocol and metric that has a budget; one column an n or k."""
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
