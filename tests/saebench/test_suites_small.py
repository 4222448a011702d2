"""Every suite end to end on a tiny GPT-2: both protocols, and the split by two routes."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.saebench import BenchOutcome, bench
from sae_lens_bipolar.saebench.suites.registry import SUITES
from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import (
    bench_sae,
    doubled_topk,
    save_bench_model,
    save_bench_sae,
    tiny_config,
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, suite_hub: HubServer) -> BenchOutcome:
    root = tmp_path_factory.mktemp("bench")
    model_dir = save_bench_model(root / "gpt2", "gpt2")
    abstopk = bench_sae("abstopk", model_dir)
    saes: dict[str, Any] = {"abstopk": abstopk, "doubled": doubled_topk(abstopk)}
    paths: list[str | Path] = [save_bench_sae(root / name, sae) for name, sae in saes.items()]
    return bench(paths, root / "out", tiny_config())


def values(
    outcome: BenchOutcome, sae: str, suite: str, protocol: str
) -> dict[tuple[str, int | None], float]:
    return {
        (row["metric"], row["budget"]): row["value"]
        for row in outcome.rows
        if (row["sae"], row["suite"], row["protocol"]) == (sae, suite, protocol)
    }


def test_every_suite_gives_numbers_on_both_protocols(outcome: BenchOutcome) -> None:
    assert outcome.not_run == []
    for suite in SUITES:
        main = SUITES[suite].headline
        for sae in ("abstopk", "doubled"):
            for protocol in ("signed", "split"):
                found = values(outcome, sae, suite, protocol)
                assert (main.metric, main.budget) in found, (suite, sae, protocol)
                assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("suite", SUITES)
def test_a_non_negative_sae_is_run_once_and_reported_twice(
    outcome: BenchOutcome, suite: str
) -> None:
    assert values(outcome, "doubled", suite, "signed") == values(outcome, "doubled", suite, "split")


@pytest.mark.parametrize("suite", SUITES)
def test_the_split_equals_a_stock_topk_of_doubled_weights(
    outcome: BenchOutcome, suite: str
) -> None:
    split, by_hand = (
        values(outcome, "abstopk", suite, "split"),
        values(outcome, "doubled", suite, "signed"),
    )
    assert by_hand
    for key, value in by_hand.items():  # the split also has twice every n of TPP
        assert split[key] == pytest.approx(value, abs=1e-5), key


def test_signed_and_split_differ_where_a_suite_is_blind_to_signs(outcome: BenchOutcome) -> None:
    for suite in ("absorption", "tpp", "core"):
        signed, split = (values(outcome, "abstopk", suite, p) for p in ("signed", "split"))
        assert signed != {key: split[key] for key in signed}, suite


def test_the_split_reports_tpp_at_twice_each_n(outcome: BenchOutcome) -> None:
    budgets = {n for metric, n in values(outcome, "abstopk", "tpp", "split")}
    assert budgets == {2, 4, 5, 10, 20, 40}
    assert {n for metric, n in values(outcome, "abstopk", "tpp", "signed")} == {2, 5, 10, 20}


@pytest.mark.parametrize(
    ("suite", "option", "words"),
    [
        ("sparse_probing", "probing_train_size", r"class '.*' of \S+ has"),
        ("tpp", "ablation_train_size", "data set has"),
        ("scr", "ablation_test_size", "data set has"),
    ],
)
def test_too_few_examples_of_a_class_are_named(
    tmp_path: Path, suite_hub: HubServer, suite: str, option: str, words: str
) -> None:
    model_dir = save_bench_model(tmp_path / "gpt2", "gpt2")
    sae = save_bench_sae(tmp_path / "topk", bench_sae("topk", model_dir))
    config = tiny_config(suites=(suite,), **{option: 100_000})
    (first, _) = bench([sae], tmp_path / "out", config).not_run
    assert re.search(rf"{words} too few .* {option}=100000", first.reason)
