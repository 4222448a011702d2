"""The results table of a run: plain text, Markdown, CSV and LaTeX from the list in summary.json."""

import csv as csv_module
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Rows = Sequence[Mapping[str, Any]]
ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """One column: where its value stands, what it is called, and which direction is better."""

    key: str  # "with_sinks.nmse" reads row["with_sinks"]["nmse"]
    label: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    style: Literal["text", "count", "l0", "score", "percent"] = "score"
    latex: str = ""

    @property
    def arrow(self) -> str:
        """↓ where lower is better, ↑ where higher is better, else nothing."""
        return {"lower": "↓", "higher": "↑", None: ""}[self.better]


NAME = Column("name", "SAE", style="text")
HEADLINE = (
    NAME,
    Column("architecture", "architecture", style="text"),
    Column("d_sae", "width", "latents", style="count"),
    Column("l0", "L0", "per token", style="l0", latex="$L_0$"),
    Column("nmse", "nMSE", better="lower"),
    Column("r2", "R²", better="higher", latex="$R^2$"),
    Column("loss_recovered", "loss recovered", better="higher"),
    Column("dead_fraction", "dead", "% of latents", better="lower", style="percent"),
    Column("bipolar_fraction", "two-sided", "% of live", style="percent"),
)
WITH_SINKS = (
    NAME,
    Column("with_sinks.l0", "L0", "per token", style="l0", latex="$L_0$"),
    Column("with_sinks.nmse", "nMSE", better="lower"),
    Column("with_sinks.r2", "R²", better="higher", latex="$R^2$"),
    Column("with_sinks.loss_recovered", "loss recovered", better="higher"),
    Column("n_sink_tokens", "sink tokens", "of held-out", style="count"),
)


def headline(rows: Rows) -> tuple[Column, ...]:
    """Columns of the main table; the architecture only if the names do not say it already."""
    said = all(row.get("architecture") == row.get("name") for row in rows)
    return tuple(c for c in HEADLINE if not (said and c.key == "architecture"))


def markdown(rows: Rows, columns: Sequence[Column] | None = None) -> str:
    """GitHub-flavoured Markdown table of `rows`; the best value of a column is bold."""
    columns = columns or headline(rows)
    best = best_cells(rows, columns)
    cells = [
        [
            f"**{_escape_markdown(cell)}**" if (i, j) in best else _escape_markdown(cell)
            for j, cell in enumerate(row)
        ]
        for i, row in enumerate(formatted(rows, columns))
    ]
    rule = [":---" if column.style == "text" else "---:" for column in columns]
    lines = [[_heading(column) for column in columns], rule, *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv(rows: Rows, columns: Sequence[Column] | None = None) -> str:
    """CSV with every digit; all keys of the rows (nested ones dotted) unless `columns` is given."""
    if columns is None:
        keys = list(dict.fromkeys(key for row in rows for key in _flat_keys(row)))
        keys.sort(key=lambda key: key != "name")  # stable: the name first, the rest as they stand
    else:
        keys = [column.key for column in columns]
    buffer = io.StringIO()
    writer = csv_module.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([lookup(row, key) for key in keys] for row in rows)
    return buffer.getvalue()


def latex(rows: Rows, columns: Sequence[Column] | None = None) -> str:
    r"""A `tabular` for LaTeX with `\usepackage{booktabs}`; the best value of a column is bold."""
    columns = columns or headline(rows)
    best = best_cells(rows, columns)
    arrows = {"lower": r" $\downarrow$", "higher": r" $\uparrow$", None: ""}
    heads = [
        (column.latex or _escape_latex(column.label))
        + (f" [{_escape_latex(column.unit)}]" if column.unit else "")
        + arrows[column.better]
        for column in columns
    ]
    lines = [
        rf"\begin{{tabular}}{{{''.join('l' if c.style == 'text' else 'r' for c in columns)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(formatted(rows, columns)):
        cells = [_escape_latex(cell) for cell in row]
        bold = [rf"\textbf{{{c}}}" if (i, j) in best else c for j, c in enumerate(cells)]
        lines.append(" & ".join(bold) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def text(rows: Rows, columns: Sequence[Column] | None = None) -> str:
    """Plain-text table for a terminal (ASCII but for the names), and which direction is better."""
    columns = columns or headline(rows)
    heads = [column.label.replace("R²", "R2") for column in columns]
    units = [column.unit for column in columns]
    body = [[cell.replace(ABSENT, "-") for cell in row] for row in formatted(rows, columns)]
    table = [heads, *([units] if any(units) else []), *body]
    widths = [max(len(row[j]) for row in table) for j in range(len(columns))]

    def line(cells: Iterable[str]) -> str:
        pairs = zip(cells, widths, columns, strict=True)
        return "  ".join(
            cell.ljust(width) if column.style == "text" else cell.rjust(width)
            for cell, width, column in pairs
        ).rstrip()

    lines = [line(row) for row in table]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines.insert(len(table) - len(body), rule)
    directions = [
        f"{word} is better: {', '.join(names)}"
        for word in ("lower", "higher")
        if (names := [h for h, c in zip(heads, columns, strict=True) if c.better == word])
    ]
    note = textwrap.wrap("; ".join(directions), max(len(rule), 60))
    return "\n".join([*lines, rule, *note]) + "\n"


def formatted(rows: Rows, columns: Sequence[Column]) -> list[list[str]]:
    """Cells as shown, row by row; decimals are the same within a column; `–` for no value."""
    by_column = []
    for column in columns:
        values = [lookup(row, column.key) for row in rows]
        if column.style == "percent":
            values = [100 * value if is_number(value) else value for value in values]
        places = _decimals(column.style, values)
        by_column.append([_cell(value, column.style, places) for value in values])
    return [list(cells) for cells in zip(*by_column, strict=True)]


def best_cells(rows: Rows, columns: Sequence[Column]) -> set[tuple[int, int]]:
    """(row, column) of the best value of each column with a direction; ties all count.

    Compared as shown, so that two equal cells are never told apart. Empty for a single row.
    """
    best: set[tuple[int, int]] = set()
    cells = formatted(rows, columns)
    for j, column in enumerate(columns):
        values = {i: lookup(row, column.key) for i, row in enumerate(rows)}
        numbers = {i: value for i, value in values.items() if is_number(value)}
        if column.better is None or len(numbers) < 2:
            continue
        top = (min if column.better == "lower" else max)(numbers, key=lambda i: numbers[i])
        tied = {(i, j) for i in numbers if cells[i][j] == cells[top][j]}
        if len(tied) < len(numbers):  # all equal: nothing to point out
            best |= tied
    return best


def lookup(row: Mapping[str, Any], key: str) -> Any:
    """Value at a dotted key, None where any part of it is absent."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _decimals(style: str, values: Sequence[Any]) -> int:
    """Enough that the smallest value other than zero shows, and a score shows two digits of it."""
    if style == "l0":
        return 1
    smallest = min((abs(value) for value in values if is_number(value) and value), default=1.0)
    magnitude = -math.floor(math.log10(smallest))
    return min(3, max(1, magnitude)) if style == "percent" else min(6, max(3, magnitude + 1))


def _cell(value: Any, style: str, places: int) -> str:
    if style == "text":
        return ABSENT if value is None else str(value)
    if not is_number(value):
        return ABSENT
    return f"{value:,.0f}" if style == "count" else f"{value:,.{places}f}"


def _heading(column: Column) -> str:
    unit = f" ({column.unit})" if column.unit else ""
    return f"{column.label}{unit} {column.arrow}".strip()


def _flat_keys(row: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _escape_markdown(cell: str) -> str:
    # An underscore inside a word (`sign_aware_gated`) needs no backslash and reads better without.
    quoted = re.sub(r"[\\|*`<>\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", cell).replace("\n", " ")
    # What GitHub and the Hub make links of by themselves: addresses, names with @.
    return re.sub(r"(?i)(?<=[a-z]):(?=//)|(?<=www)\.|@", lambda m: f"&#{ord(m.group())};", quoted)


def _escape_latex(cell: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
    return "".join(special.get(character, character) for character in cell)
