"""The recipe of Table 2 trains, runs suites, and puts the paper's numbers beside its own."""

import csv
from pathlib import Path
from typing import Any

import pytest

from recipes.abstopk import table2
from recipes.common.labelled_text import write_reviews
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json
from tests.recipes.abstopk.settings import tiny_scale, write_config
from tests.recipes.common.test_labelled_text import reviews

REVIEWS = "canrager/amazon_reviews_mcauley_1and5"


@pytest.fixture
def settings(tiny_model_dirs: dict[str, Path], tiny_text: Path, tmp_path: Path) -> dict[str, Any]:
    """One layer, one k, one theta; three suites on made reviews, and one the Hub would be needed
    for."""
    write_reviews(tmp_path / "data", reviews(60))
    scale = tiny_scale(tiny_model_dirs["gpt2"], tiny_text)
    scale["models"]["tiny"] |= {"layers": [0], "k": [4], "paper": "GPT2-small"}
    scale["models"]["tiny"]["jumprelu"] = [{"jumprelu_init_threshold": 0.01}]
    bench = {
        "suites": ["tpp", "scr", "sparse_probing", "ravel"],
        "data_folder": str(tmp_path / "data"),
        "context_length": 16,
        "ablation_n": [2, 20],
        "ablation_train_size": 32,
        "ablation_test_size": 8,
        "ablation_epochs": 2,
        "ablation_datasets": [REVIEWS],
        "scr_pairs": 1,
        "probing_train_size": 32,
        "probing_test_size": 8,
        "probing_datasets": [f"{REVIEWS}_sentiment"],
        "probing_k": [1, 5],
    }
    return {**scale, "bench": bench, "not_run": {"unlearning": "too small a model"}}


def test_end_to_end_and_again(
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sae_bench")
    config = write_config(tmp_path, tiny=settings)
    arguments = ["--scale", "tiny", "--config", str(config), "--output", str(tmp_path / "run")]
    arguments += ["--device", "cpu"]
    table2.main([*arguments, "--cells", "another"])
    assert not (tmp_path / "run/cells").exists()
    table2.main(arguments)
    results, report = tmp_path / "run" / "results", tmp_path / "run" / "report"
    with open(results / "table2.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(r["method"], r["protocol"]) for r in rows} == {
        (method, protocol)
        for method in ("abstopk", "topk", "jumprelu")
        for protocol in ("signed", "split")
    }
    assert {(r["task"], r["budget"]) for r in rows if r["protocol"] == "signed"} == {
        *(("tpp", "2"), ("tpp", "20"), ("scr", "2"), ("scr", "20")),
        *(("sparse_probing", "1"), ("sparse_probing", "5")),
    }
    with open(report / "figure3.csv", encoding="utf-8") as file:
        bars = list(csv.DictReader(file))
    assert (report / "figure3.png").stat().st_size > 10_000
    assert {(bar["task"], bar["budget"]) for bar in bars} == {
        *(("tpp", "20"), ("scr", "20"), ("sparse_probing", "5"))
    }
    shown = {(bar["task"], bar["method"], bar["protocol"]): bar["ours"] for bar in bars}
    for row in rows:
        key = (row["task"], row["method"], row["protocol"])
        if row["is_default"] == "True":
            assert shown[key] == row["ours"]
    # Poles: TPP of the signed SAE's split is there at 2n as well.
    assert {
        r["budget"] for r in rows if (r["task"], r["protocol"]) == ("tpp", "split")
    } == {"2", "4", "20", "40"}  # fmt: skip
    for row in rows:
        assert float(row["ours"]) - float(row["paper"]) == pytest.approx(float(row["difference"]))
        # GPT-2's layer 0 is not in the paper's table.
        assert row["paper_source"] == "mean of Table 2"
        assert row["is_default"] == str(row["budget"] in ("20", "5"))
    not_run = read_json(results / "not_run.json")
    assert not_run[0] == {"suite": "unlearning", "reason": "too small a model"}
    assert {one["suite"] for one in not_run[1:]} == {"ravel"}
    verdicts = {c["claim"]: c["verdict"] for c in read_json(results / "claims.json")}
    assert verdicts["AbsTopK scores highest in RAVEL"] == "not run at this scale"
    assert verdicts["AbsTopK scores highest in unlearning"] == "not run at this scale"
    assert verdicts["AbsTopK scores highest in TPP"] == "undecided"  # one seed
    printed = capsys.readouterr().out
    assert "too small a model" in printed
    assert "sparse probing (k=5)" in printed
    assert "in place of SAEBench's own data sets (8 and 8 test examples" in printed

    cell = tmp_path / "run/cells/tiny"
    weights = list(cell.glob("sweep/checkpoints/*/sae_weights.safetensors"))
    files = [*weights, *cell.glob("saebench/saebench/*/*/*/*.json")]
    before = {file: file.stat().st_mtime_ns for file in files}
    # Each suite: TopK and JumpReLU once, AbsTopK on two protocols; two files a run.
    assert len(before) == 3 + 3 * 4 * 2
    table2.main(arguments)
    assert {file: file.stat().st_mtime_ns for file in files} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bench": {"suits": ["tpp"]}}, "bench has no setting 'suits'; did you mean 'suites'"),
        ({"bench": {"suites": ["tpp2"]}}, "tpp2"),
        ({"not_run": {"ravell": "why"}}, "not_run='ravell'"),
        ({"sweep": {"lr": -1.0}}, "lr"),
        ({"sae": {"width": 3}}, "width"),
        ({"models": {}}, "models is empty"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], tmp_path: Path, change: Any, message: str
) -> None:
    config = write_config(tmp_path, tiny=settings | change)
    with pytest.raises(ConfigError, match=message):
        table2.main(["--scale", "tiny", "--config", str(config), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
