"""Ours beside the paper's: readings, differences, ranking, against hand-made benchmark rows."""

from inspect import signature
from typing import Any

import pytest

from recipes.abstopk import figure3, paper_numbers, scores, table2, table2_claims


def trained(layer: int = 6) -> list[dict[str, Any]]:
    return [
        {"name": f"{m}_l{layer}", "method": m, "layer": layer, "model": "openai-community/gpt2",
         "alias": "gpt2", "seed": 0, "n_train_tokens": 1000}
        for m in ("topk", "abstopk", "jumprelu")
    ]  # fmt: skip


def rows(
    suite: str, metric: str, budget: int | None, values: dict[str, float], layer: int = 6
) -> list[dict[str, Any]]:
    return [
        {"sae": f"{m}_l{layer}", "architecture": m, "model": "gpt2", "hook": "h", "suite": suite,
         "protocol": protocol, "metric": metric, "budget": budget, "value": value, "seed": 42}
        for m, value in values.items()
        for protocol in ("signed", "split")
    ]  # fmt: skip


PAPER = {"openai-community/gpt2": "GPT2-small"}


def test_the_papers_own_cell_and_the_difference() -> None:
    found = scores.scores(rows("tpp", "tpp_total_metric", 20, {"topk": 0.25}), trained(), PAPER)
    assert [(s.paper, s.paper_source, s.is_default) for s in found] == [(0.19, "Table 2", True)] * 2
    assert found[0].difference == pytest.approx(0.06)


def test_without_such_a_row_the_mean_of_the_table() -> None:
    given = rows("scr", "scr_metric", 20, {"abstopk": 0.2}, layer=7)
    found = scores.scores(given, trained(7), PAPER)
    # Mean of the column: (0.27 + 0.27 + 0.20 + 0.21 + 0.18 + 0.23 + 0.35 + 0.32) / 8.
    assert found[0].paper == pytest.approx(0.25375)
    assert found[0].paper_source == "mean of Table 2"


def test_readings() -> None:
    absorbed = rows("absorption", "mean_absorption_fraction_score", None, {"topk": 0.3})
    unlearned = rows("unlearning", "unlearning_score", None, {"topk": 0.9})
    found = scores.scores([*absorbed, *unlearned], trained(), PAPER)
    read = {s.reading: s.ours for s in found if s.protocol == "split"}
    expected = {"absorption": 0.7, "unlearning": 0.9, "unlearning, 1 - score": 0.1}
    assert read == pytest.approx(expected)
    assert all(s.is_default for s in found)


def seeds_of(function: Any, *arguments: Any, n: int = 3) -> list[dict[str, Any]]:
    """What a function of rows gives, for `n` seeds with hardly different scores."""
    return [
        {**row, ("sae" if "sae" in row else "name"): f"{row.get('sae') or row['name']}_seed{seed}"}
        | ({"seed": seed} if "name" in row else {"value": row["value"] + 1e-4 * seed})
        for seed in range(n)
        for row in function(*arguments)
    ]


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_claim_is_judged_on_the_tasks_own_protocol_and_default(n_seeds: int) -> None:
    """One seed decides nothing."""
    best = {"topk": 0.1, "jumprelu": 0.2, "abstopk": 0.3}
    worst = {"topk": 0.3, "jumprelu": 0.2, "abstopk": 0.1}

    def of(*arguments: Any) -> list[dict[str, Any]]:
        return seeds_of(rows, *arguments, n=n_seeds)

    given = [
        *[row for row in of("tpp", "tpp_total_metric", 20, best) if row["protocol"] == "split"],
        *[row for row in of("tpp", "tpp_total_metric", 20, worst) if row["protocol"] == "signed"],
        *of("tpp", "tpp_total_metric", 5, worst),
        *of("scr", "scr_metric", 20, worst),
        *of("sparse_probing", "sae_top_k_test_accuracy", 5, dict.fromkeys(best, 0.5)),
    ]
    saes = seeds_of(trained, n=n_seeds)
    found = scores.scores(given, saes, PAPER)
    claims = table2_claims.claims(found, saes)
    verdicts = {claim.claim.rsplit(" in ", 1)[1]: claim.verdict for claim in claims}
    assert verdicts == {
        "TPP": "holds" if n_seeds == 3 else "undecided",
        "SCR": "does not hold" if n_seeds == 3 else "undecided",
        "sparse probing": "undecided",  # a tie
        **dict.fromkeys(("unlearning", "absorption", "RAVEL"), "not run at this scale"),
    }
    tpp = next(claim for claim in claims if claim.claim.endswith("TPP"))
    assert tpp.ours.startswith("highest in 1 of 1 (split). signed: AbsTopK 0.100")
    assert tpp.estimate == pytest.approx(0.1)  # over JumpReLU, the nearer rival
    # Few test examples, or a large margin, and it is undecided or does not hold.
    assert outcome(found, saes, {"tpp": 16}, {}) == "undecided"
    if n_seeds == 3:
        assert outcome(found, saes, {}, {"tpp": 0.05}) == "holds"
        assert outcome(found, saes, {"tpp": 10_000}, {"tpp": 0.05}) == "holds"
        assert outcome(found, saes, {}, {"tpp": 0.15}) == "does not hold"
    # Without JumpReLU there is no ranking of three.
    two = [row for row in given if not row["sae"].startswith("jumprelu")]
    claims = table2_claims.claims(scores.scores(two, saes, PAPER), saes)
    assert {claim.verdict for claim in claims} == {"not run at this scale"}


def outcome(found: Any, saes: Any, examples: dict[str, int], margins: dict[str, float]) -> str:
    claims = table2_claims.claims(found, saes, examples, margins)
    return next(claim.verdict for claim in claims if claim.claim.endswith("TPP"))


def test_tables_have_means_over_seeds() -> None:
    given = seeds_of(rows, "tpp", "tpp_total_metric", 20, {"topk": 0.1})
    (signed, split) = scores.averaged(scores.scores(given, seeds_of(trained), PAPER))
    assert (signed.protocol, split.protocol) == ("signed", "split")
    assert signed.ours == pytest.approx(0.1001)
    assert signed.difference == pytest.approx(0.1001 - 0.19)


def test_the_figure_has_a_bar_of_the_mean_and_a_dot_for_every_seed() -> None:
    pytest.importorskip("matplotlib")
    methods = {"topk": 0.1, "jumprelu": 0.2, "abstopk": 0.3}
    given = seeds_of(rows, "tpp", "tpp_total_metric", 20, methods)
    plot = figure3.figure(scores.scores(given, seeds_of(trained), PAPER))
    axes: Any = plot.figure.axes[0]
    # Of each method the task's own protocol, and of AbsTopK the other one.
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.3001, 0.3001, 0.1001, 0.2001])
    dots = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [pytest.approx([v, v + 1e-4, v + 2e-4]) for v in (0.3, 0.1, 0.2)]
    assert len(plot.rows) == 3 * 2 * 3  # methods, protocols, seeds
    one = figure3.figure(scores.scores(seeds_of(rows, "tpp", "tpp_total_metric", 20, methods, n=1),
                                       seeds_of(trained, n=1), PAPER))  # fmt: skip
    assert [line.get_marker() for line in one.figure.axes[0].lines] == ["None"]  # zero


def test_examples_are_those_a_score_is_tested_on() -> None:
    sizes = {"ablation_test_size": 160, "probing_test_size": 120}
    settings = table2.bench_config({**sizes, "absorption_words": 3000}, "cpu")
    assert table2.n_examples(settings) == {
        "scr": 160,
        "tpp": 160,
        "sparse_probing": 120,
        "absorption": 600,  # SAEBench trains its probes on 80% of the words
    }
    # Of the whole vocabulary the number is the tokenizer's.
    assert "absorption" not in table2.n_examples(table2.bench_config({}, "cpu"))


def test_absorption_is_still_tested_on_a_fifth_of_the_words() -> None:
    probing = pytest.importorskip("sae_bench.evals.absorption.probing")
    build = signature(probing.create_dataset_probe_training)
    share = build.parameters["train_test_fraction"].default
    assert 1 - share == pytest.approx(table2.ABSORPTION_TEST_SHARE)


def test_tables() -> None:
    values = {"topk": 0.1, "jumprelu": 0.2, "abstopk": 0.3}
    given = [
        *(row for n in (5, 20) for row in rows("tpp", "tpp_total_metric", n, values)),
        *rows("absorption", "mean_absorption_fraction_score", None, values),
    ]
    found = scores.scores(given, trained(), PAPER)
    text = scores.markdown(found, [{"suite": "ravel", "reason": "a | b"}])
    model = "| openai-community/gpt2 | 6 | split |"
    assert f"{model} AbsTopK | 0.700*, 0.66, +0.040 | 0.300*, 0.22, +0.080 |" in text
    assert "| signed | TopK | 0.900, 0.63, +0.270 | 0.100, 0.19, -0.090 |" in text
    assert f"{model} TPP | TopK | 0.100 | **0.100** | 0.19 |" in text
    assert r"| ravel | a \| b |" in text
    assert "mean of its eight rows" not in text


def test_table_2_is_whole() -> None:
    table = paper_numbers.TABLE_2
    assert len(table) == 8 * 3
    assert len({(row.model, row.layer, row.method) for row in table}) == 24
    assert all(0 < score < 1 for row in table for score in row.scores.values())
    # Column sums, added up from the paper's page, and rows counted there.
    sums = {task: sum(row.scores[task] for row in table) for task in paper_numbers.TASKS}
    expected = {"unlearning": 20.01, "absorption": 16.0, "scr": 5.26, "tpp": 6.8}
    expected |= {"ravel": 16.23, "sparse_probing": 16.11}
    assert sums == pytest.approx(expected)
    assert paper_numbers.table_2("Gemma2-2B", 16, "topk", "scr") is None
    assert {task: table2_claims.best_in_paper(task)[0] for task in paper_numbers.TASKS} == {
        "unlearning": 6,
        "absorption": 6,
        "scr": 8,
        "tpp": 8,
        "ravel": 6,
        "sparse_probing": 6,
    }
