"""Rows from SAEBench's JSON, the CSV file and the tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.saebench import read_rows
from sae_lens_bipolar.saebench.results import COLUMNS, markdown, metrics_of, write_rows


def result(folder: Path, metrics: dict[str, Any], unstructured: Any = None) -> Path:
    file = folder / "a_custom_sae_eval_results.json"
    text = {"eval_result_metrics": metrics, "eval_result_unstructured": unstructured}
    file.write_text(json.dumps(text))
    return file


def row(**changes: Any) -> dict[str, Any]:
    values = ("a", "abstopk", "gpt2", "blocks.0.hook_resid_post", "tpp", "split")
    shared = dict(zip(COLUMNS, (*values, "tpp_total_metric", 20, 0.25, 42), strict=True))
    return {**shared, **changes}


def test_metrics_with_a_budget_carry_it(tmp_path: Path) -> None:
    scr = result(tmp_path, {"scr_metrics": {"scr_metric_threshold_20": 0.5}})
    assert metrics_of("scr", scr) == [("scr_metric", 20, 0.5)]
    probing = result(
        tmp_path,
        {"llm": {"llm_test_accuracy": 0.75}, "sae": {"sae_top_5_test_accuracy": 0.5}},
    )
    assert metrics_of("sparse_probing", probing) == [
        ("llm_test_accuracy", None, 0.75),
        ("sae_top_k_test_accuracy", 5, 0.5),
    ]


def test_tpp_is_averaged_over_classes_then_data_sets(tmp_path: Path) -> None:
    key = "tpp_threshold_4_total_metric"  # an n that SAEBench's own metrics have no place for
    classes = {"one": {"0": {key: 0.0}, "1": {key: 1.0}}, "two": {"0": {key: 0.25}}}
    file = result(tmp_path, {"tpp_metrics": {}}, classes)
    assert metrics_of("tpp", file) == [("tpp_total_metric", 4, 0.375)]


def test_absent_and_nan_numbers_are_left_out_not_zero(tmp_path: Path) -> None:
    found = {"ravel": {"disentanglement_score": float("nan"), "cause_score": None, "iso": 1.0}}
    assert metrics_of("ravel", result(tmp_path, found)) == [("iso", None, 1.0)]


def test_core_leaves_out_the_wrong_explained_variance_and_nan_stored_as_minus_one(
    tmp_path: Path,
) -> None:
    found = {"r": {"explained_variance": 0.9, "explained_variance_legacy": 0.5, "mse": -1.0}}
    assert metrics_of("core", result(tmp_path, found)) == [("explained_variance_legacy", None, 0.5)]


def test_both_readings_of_the_unlearning_score(tmp_path: Path) -> None:
    found = {"unlearning": {"unlearning_score": 0.25}}
    assert {
        name: value for name, _, value in metrics_of("unlearning", result(tmp_path, found))
    } == {
        "unlearning_score": 0.25,
        "min_wmdp_accuracy": 0.75,
    }


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows = [row(), row(budget=None, metric="l0", suite="core", value=1 / 3)]
    write_rows(tmp_path, rows)
    assert read_rows(tmp_path) == rows == read_rows(tmp_path / "results" / "saebench.csv")
    first = (tmp_path / "results" / "saebench.csv").read_text().splitlines()[0]
    assert first == "sae,architecture,model,hook,suite,protocol,metric,budget,value,seed"


def test_reading_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `sae-lens-bipolar bench` first"):
        read_rows(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="has columns"):
        read_rows(tmp_path / "other.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ConfigError, match="has columns None"):
        read_rows(tmp_path / "empty.csv")


def test_the_table_marks_headline_protocols_and_lists_every_n() -> None:
    absorption = row(suite="absorption", metric="mean_absorption_fraction_score", budget=None)
    rows = [row(), row(protocol="signed", value=0.1), row(budget=50, value=0.4), absorption]
    text = markdown(rows)
    assert "0.750*" in text  # 1 - 0.25, and split is absorption's headline
    assert "| 0.100 |" in text
    assert "0.250*" in text
    assert "| a | tpp | split | tpp_total_metric | 0.250 | 0.400 |" in text


def test_the_tables_line_by_line(tmp_path: Path) -> None:
    absorption = row(suite="absorption", metric="mean_absorption_fraction_score", budget=None)
    rows = [row(), row(protocol="signed", value=0.1), row(budget=5, value=0.4), absorption]
    rows += [row(sae="b", suite="core", metric="ce_loss_score", budget=None, value=1 / 3)]
    hook = "abstopk | gpt2 | blocks.0.hook_resid_post"
    expected = f"""\
| SAE | architecture | model | hook | protocol | absorption (1 - mean fraction) | tpp (n=20) | \
core (ce_loss_score) |
|---|---|---|---|---|---|---|---|
| a | {hook} | split | 0.750* | 0.250* |  |
| a | {hook} | signed |  | 0.100 |  |
| b | {hook} | split |  |  | 0.333* |

| SAE | suite | protocol | metric | 5 | 20 |
|---|---|---|---|---|---|
| a | tpp | split | tpp_total_metric | 0.400 | 0.250 |
| a | tpp | signed | tpp_total_metric |  | 0.100 |
"""
    assert markdown(rows) == expected
    write_rows(tmp_path, rows)
    assert (tmp_path / "results/saebench.md").read_text() == expected


def test_texts_lists_and_infinities_are_no_numbers(tmp_path: Path) -> None:
    found = {"ravel": {"a": float("inf"), "b": "0.5", "c": 3, "d": [0.5]}}
    assert metrics_of("ravel", result(tmp_path, found)) == [("c", None, 3.0)]
