"""Tables: the numbers of the rows, the direction of each column, escaping."""

import csv
import io
from typing import Any

import pytest

from sae_lens_bipolar.reports import tables

ROWS: list[dict[str, Any]] = [
    {
        "name": "abstopk",
        "architecture": "abstopk",
        "d_sae": 4096,
        "l0": 64.04,
        "nmse": 0.1234,
        "r2": 0.81,
        "loss_recovered": 0.95,
        "dead_fraction": 0.0123,
        "bipolar_fraction": 0.5,
        "with_sinks": {"l0": 65.0, "nmse": 0.01, "r2": 0.999, "loss_recovered": 0.9},
        "n_sink_tokens": 12,
    },
    {
        "name": "top_k|$1",
        "architecture": "topk",
        "d_sae": 4096,
        "l0": 64.0,
        "nmse": 0.2,
        "r2": 0.91,
        "loss_recovered": None,
        "dead_fraction": 0.01234,
        "bipolar_fraction": None,
    },
]


def test_cells_are_the_rows_numbers_in_the_columns_unit():
    shown = "abstopk abstopk 4,096 64.0 0.123 0.810 0.950 1.2 50.0"
    assert tables.formatted(ROWS, tables.HEADLINE)[0] == shown.split()


def test_a_value_that_is_absent_or_not_finite_is_a_dash():
    cells = tables.formatted([{**ROWS[1], "nmse": float("nan")}], tables.HEADLINE)[0]
    keys = [column.key for column in tables.HEADLINE]
    for key in ("nmse", "loss_recovered", "bipolar_fraction"):
        assert cells[keys.index(key)] == "–"


def test_best_follows_the_columns_direction_and_counts_ties_as_shown():
    keys = [column.key for column in tables.HEADLINE]
    best = {(i, keys[j]) for i, j in tables.best_cells(ROWS, tables.HEADLINE)}
    # dead: 1.2 and 1.2 as shown, so nothing to point out; loss recovered: one value only.
    assert best == {(0, "nmse"), (1, "r2")}


def test_no_best_for_a_single_row():
    assert tables.best_cells(ROWS[:1], tables.HEADLINE) == set()


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.00123, 0.5], ["0.0012", "0.5000"]),
        ([0.123, 0.5], ["0.123", "0.500"]),
        ([0.0, 0.0], ["0.000", "0.000"]),
        ([-3.25, 0.5], ["-3.250", "0.500"]),
    ],
)
def test_decimals_suit_the_smallest_value_of_a_column(values: list[float], shown: list[str]):
    column = tables.Column("x", "x")
    assert [row[0] for row in tables.formatted([{"x": v} for v in values], [column])] == shown


def test_csv_keeps_every_digit_and_flattens():
    rows = list(csv.DictReader(io.StringIO(tables.csv(ROWS))))
    assert next(iter(rows[0])) == "name"
    assert float(rows[0]["nmse"]) == ROWS[0]["nmse"]
    assert float(rows[0]["with_sinks.r2"]) == 0.999
    assert rows[1]["with_sinks.r2"] == ""
    assert rows[1]["name"] == "top_k|$1"


def test_markdown_has_one_cell_a_column_and_escapes_the_pipe():
    lines = tables.markdown(ROWS).splitlines()
    assert len(lines) == 4
    assert "nMSE ↓" in lines[0]
    assert "**0.123**" in lines[2]
    assert lines[3].startswith("| top_k\\|$1 |")
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(tables.HEADLINE) + 1}


def test_latex_is_balanced_and_escaped():
    text = tables.latex(ROWS)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 3
    assert {line.count(" & ") for line in body} == {len(tables.HEADLINE) - 1}
    assert r"top\_k|\$1" in text
    assert r"\textbf{0.123}" in text
    assert r"[\% of latents]" in body[0]
    assert text.count("{") == text.count("}")


def test_text_is_aligned_ascii_and_names_the_directions():
    text = tables.text(ROWS)
    assert text.isascii()
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"-"})
    right_edge = lines[0].index("nMSE") + len("nMSE")
    assert lines[rule + 1][:right_edge].endswith(" 0.123")
    assert lines[rule + 2][:right_edge].endswith(" 0.200")
    assert lines[-1] == "lower is better: nMSE, dead; higher is better: R2, loss recovered"


def test_the_architecture_is_left_out_where_it_is_the_name():
    assert "architecture" in tables.text(ROWS)
    assert "architecture" not in tables.text(ROWS[:1])


def test_the_second_table_reads_the_values_with_sinks():
    cells = tables.formatted(ROWS, tables.WITH_SINKS)
    assert cells[0] == ["abstopk", "65.0", "0.010", "0.999", "0.900", "12"]
    assert cells[1] == ["top_k|$1", "–", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("[a](http://b.c)", r"\[a\](http&#58;//b.c)"),
        ("![a](javascript:1)", r"!\[a\](javascript:1)"),
        ("see www.a.b", "see www&#46;a.b"),
        ("@ada", "&#64;ada"),
        ("HTTPS://a.b", "HTTPS&#58;//a.b"),
        ("<a href=x>", r"\<a href=x\>"),
        ("sign_aware_gated 1:2", "sign_aware_gated 1:2"),
    ],
)
def test_no_cell_is_a_link(cell: str, shown: str) -> None:
    column = tables.HEADLINE[0]
    table = tables.markdown([{**ROWS[0], column.key: cell}, ROWS[1]], [column])
    assert f"| {shown} |" in table
