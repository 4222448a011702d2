"""The recipe of Table 1 runs, is killed and resumed, and says what its own files give."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.abstopk import table1, table1_cells
from recipes.abstopk.steering_judges import JUDGES
from recipes.abstopk.steering_measures import Bench, edited
from recipes.abstopk.steering_methods import METHODS
from recipes.abstopk.steering_statistics import (
    benjamini_hochberg,
    bootstrap,
    holm,
    verdict_of,
)
from recipes.abstopk.table1_claims import Effects, Margins, claims
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.steering import AddVector, steering
from tests.recipes.abstopk.settings import write_config
from tests.recipes.abstopk.steering_settings import tiny_saes, use_made_reviews

DESIGN = {
    "candidates": 3,
    "strengths": [0.2, 0.8],
    "budgets": [0.01, 0.05],
    "generated": [0.05],
    "contrast_texts": 12,
    "effect_texts": 4,
    "text_length": 24,
    "utility_texts": 3,
    "utility_length": 24,
    "prompts": 12,
    "prompt_length": 3,
    "new_tokens": 4,
    "curve_prompts": 2,
}


def arguments(folder: Path, run: Path, model: Path, text: Path) -> list[str]:
    kinds = ["abstopk", "topk", "topk_2x", "jumprelu"]
    scale = {
        "saes": tiny_saes(model, text, kinds=kinds, repeated=kinds),
        "design": DESIGN,
        "margins": {"draws": 200},
    }
    config = write_config(folder, tiny=scale)
    return ["--scale", "tiny", "--config", str(config), "--output", str(run)]


def contents(run: Path) -> dict[str, bytes]:
    """Result files, without what differs from run to run."""
    files = [*run.glob("results/*"), *run.glob("results/generations/*"), *run.glob("report/*.csv")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.is_file()}


def test_killed_and_resumed_it_ends_the_same(
    tiny_model_dirs: dict[str, Path],
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vaderSentiment")
    pytest.importorskip("sklearn")
    use_made_reviews(monkeypatch)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    table1.main(arguments(tmp_path, whole, tiny_model_dirs["gpt2"], tiny_text))
    assert {"results/curve.jsonl", "results/selected.json", "results/claims.json"} <= set(
        contents(whole)
    )
    again = arguments(tmp_path, stopped, tiny_model_dirs["gpt2"], tiny_text)
    written, append = 0, table1_cells.append_line

    def until_killed(file: Path, row: Any) -> None:
        nonlocal written
        written += 1
        if written % 23 == 0:
            with file.open("a") as out:
                out.write(json.dumps(row)[:7])  # as a stop in the middle of a line leaves it
            raise KeyboardInterrupt
        append(file, row)

    monkeypatch.setattr(table1_cells, "append_line", until_killed)
    stops = 0
    while True:
        try:
            table1.main(again)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 5
    assert contents(stopped) == contents(whole)


def test_its_files_hold_every_method_side_and_budget(
    tiny_model_dirs: dict[str, Path],
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vaderSentiment")
    pytest.importorskip("sklearn")
    use_made_reviews(monkeypatch)
    run = tmp_path / "run"
    table1.main(arguments(tmp_path, run, tiny_model_dirs["llama"], tiny_text))
    lines = table1_cells.read_lines(run / "results/curve.jsonl")
    steered = [name for name, method in METHODS.items() if method.source != "none"]
    for name in steered:
        for seed in (0, 1):
            mine = [row for row in lines if (row["method"], row["seed"]) == (name, seed)]
            curve = [(r["side"], r["strength"]) for r in mine if r["split"] == "validation"]
            assert sorted(curve) == [(-1, 0.2), (-1, 0.8), (1, 0.2), (1, 0.8)]
            tested = [(row["budget"], row["side"]) for row in mine if row["split"] == "test"]
            assert sorted(tested) == [(0.01, -1), (0.01, 1), (0.05, -1), (0.05, 1)]
    chosen = {
        (row["method"], row["seed"]): row
        for row in read_json(run / "results/selected.json")["methods"]
    }
    assert len(chosen["abstopk", 0]["first_order"]) == DESIGN["candidates"]
    latent, other = chosen["topk_pair", 1]["chosen"]["latents"]
    assert latent[0] != other[0]
    assert latent[1] == other[1] == 1
    file = run / "results/generations/dim.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert {
        (row["seed"], row["side"], row["prompt"]) for row in rows if row["split"] == "test"
    } == {(seed, side, prompt) for seed in (0, 1) for side in (-1, 1) for prompt in range(6)}
    assert all(-1 <= row[judge] <= 1 for row in rows for judge in JUDGES)
    untouched = [row for row in lines if row["method"] == "unsteered"]
    assert [(row["effect"], row["cost"]) for row in untouched] == [(0, 0)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_reading_from_the_hook_on_is_reading_inside_steering(
    family: str, tiny_model_dirs: dict[str, Path]
) -> None:
    bench = Bench(str(tiny_model_dirs[family]), 0)
    text = bench.read(["a man walks", "the film of a town in the rain and it"], 20)
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(0))
    edit = AddVector(drawn, 0.7, bench.hook)
    with steering(bench.model, edit):
        logits = bench.model(
            text.tokens, prepend_bos=False, attention_mask=text.real.long(), return_type="logits"
        )
    expected = []
    for row, tokens, real in zip(logits.log_softmax(-1), text.tokens, text.real, strict=True):
        n = int(real.sum())
        expected.append(row[: n - 1].gather(1, tokens[1:n, None]).mean())
    found = bench.log_probs(text, edit)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, bench.log_probs(text))
    # Padding keeps its activations.
    changed = edited(text, edit)
    assert torch.equal(changed[~text.real], text.x[~text.real])


def test_strengths_at_a_budget() -> None:
    curve = [(0.1, 0.01), (0.2, 0.04), (0.4, 0.16)]
    assert table1_cells.strength_at(0.04, curve) == (pytest.approx(0.2), True)
    assert table1_cells.strength_at(0.0025, curve) == (pytest.approx(0.05), True)
    strength, reached = table1_cells.strength_at(0.08, curve)
    assert reached
    assert strength == pytest.approx(0.2 * 2**0.5)  # cost goes with the square here
    assert table1_cells.strength_at(0.5, curve) == (0.4, False)
    assert table1_cells.strength_at(0.02, [(0.1, -0.01), (0.2, 0.08)])[0] == pytest.approx(0.1)


def test_holm_and_benjamini_hochberg() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([]) == []


def made_effects(gap: float, seed: int = 0) -> Effects:
    """Three seeds and 100 prompts; AbsTopK above its rivals by `gap`."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(0, 0.5, 100)
    found = {}
    for name, method in METHODS.items():
        if method.source != "none":
            level = 0.6 + gap * (name == "abstopk") - 0.6 * (method.control is None)
            for judge in JUDGES:
                noise = generator.normal(0, 0.3, (3, 100))
                found[name, judge, 0.05] = level + shared + noise
    return Effects(found)


def verdicts(gap: float) -> list[str]:
    margins = Margins(dim=0.2, draws=1000)
    return [one.verdict for one in claims(made_effects(gap), [], margins, "keep", 10)]


def test_verdicts_follow_a_planted_gap_and_can_be_undecided() -> None:
    above, level, below = verdicts(0.4), verdicts(0.0), verdicts(-0.4)
    assert above[:3] == ["holds"] * 3
    assert level[:2] == ["undecided"] * 2
    assert level[2] == "holds"  # within the margin of DiM
    assert below[:3] == ["does not hold"] * 3
    assert above[3:9] == ["holds"] * 6  # the random controls
    assert above[9] == "not run at this scale"


def test_no_difference_is_seldom_called_one() -> None:
    """Under no difference a claim of six cells holds in far fewer than 2.5% of runs."""
    wrong = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0, 1, (6, 3, 50))
        wrong += verdict_of([bootstrap(one, draws=400) for one in noise]) == "holds"
    assert wrong <= 5


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for change, words in (
        ({"methods": ["absotpk"]}, "methods='absotpk'"),
        ({"error": "lose"}, "error='lose'"),
        ({"generated": [0.3]}, "must be among budgets"),
        ({"strengths": [0.0]}, "strengths and budgets"),
    ):
        with pytest.raises(ConfigError, match=words):
            table1_cells.Design(**change)  # type: ignore[arg-type]
