"""SAEBench's numbers on the model card: which go there, whose they are, and how they read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.hub.benchmarks import gather, headline_markdown
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.runs.sources import find_saes
from sae_lens_bipolar.saebench import read_rows
from sae_lens_bipolar.saebench.suites.registry import SUITES
from tests.hub.published_run import BENCH_COMMAND, Metric, write_bench, write_run

BOTH = ("signed", "split")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ("abstopk", "topk"))


def folder_of(path: Path, **options: Any) -> Path:
    config = PublishConfig("ada/signed", license="mit", **options)
    folder = publish(path, config, dry_run=True).folder
    assert folder is not None
    return folder


def section(card: str) -> str:
    return card.split("## SAEBench\n\n")[1].split("\n## ")[0]


def write_benches(run_dir: Path, **config: Any) -> None:
    abstopk, topk = run_dir / "checkpoints/abstopk", run_dir / "checkpoints/topk"
    tpp, score = "tpp_total_metric", "sae_top_k_test_accuracy"
    for protocol, value in (("signed", 0.125), ("split", 0.5)):
        numbers = [(tpp, 20, value), (tpp, 2, 0.9)]
        write_bench(run_dir / "bench", abstopk, "tpp", (protocol,), numbers, **config)
    write_bench(run_dir / "bench", topk, "tpp", BOTH, [(tpp, 20, 0.25)], **config)
    other = run_dir / "probing"
    write_bench(other, abstopk, "sparse_probing", ("signed",), [(score, 5, 0.75)], **config)
    write_bench(other, abstopk, "sparse_probing", ("split",), [(score, 5, 0.75)], **config)
    write_bench(other, topk, "sparse_probing", BOTH, [(score, 5, 0.6)], **config)


def test_headlines_of_every_folder_of_the_run_both_protocols(run_dir: Path) -> None:
    write_benches(run_dir)
    folder = folder_of(run_dir)
    card = section((folder / "README.md").read_text())
    assert [line for line in card.splitlines() if line.startswith("|")] == [
        "| suite | protocol | `abstopk` | `topk` |",
        "| :--- | :--- | ---: | ---: |",
        "| TPP, n = 20 | split * | 0.500 | 0.250 |",
        "|  | signed | 0.125 | 0.250 |",
        "| sparse probing, k = 5: accuracy | both | 0.750 | 0.600 |",
    ]
    assert "Not run: absorption, SCR, RAVEL, unlearning, core.\n" in card
    assert "Seed 42." in card
    assert "not SAEBench's own" not in card
    assert "local folder" not in card
    shown = BENCH_COMMAND.replace("/home/ada/runs/", ".../").replace("/x/bench", "/bench")
    assert card.replace(" \\\n ", "").count(shown) == 2
    assert len(read_rows(folder / "results/saebench.csv")) == 10
    assert (folder / "results/saebench/probing/config.yaml").is_file()


def test_other_sizes_other_data_and_the_training_corpus_are_said(run_dir: Path) -> None:
    write_benches(run_dir, probing_k=[5], data_folder="/home/ada/texts/reviews")
    core = run_dir / "checkpoints/topk"
    numbers = [("ce_loss_score", None, 0.9)]
    write_bench(run_dir / "core", core, "core", BOTH, numbers, core_dataset="sotu")
    card = section((folder_of(run_dir) / "README.md").read_text())
    assert "not SAEBench's own" in card
    assert "local folder `.../reviews`" in card
    assert "Core read the corpus the SAEs were trained on" in card
    assert "| core: loss recovered | both | – | 0.900 |" in card


def test_sizes_of_suites_that_were_not_run_do_not_count(run_dir: Path) -> None:
    topk = run_dir / "checkpoints/topk"
    numbers = [("unlearning_score", None, 0.5)]
    changed = {"ravel_pairs": 2, "core_dataset": "sotu"}
    write_bench(run_dir / "bench", topk, "unlearning", BOTH, numbers, **changed)
    card = section((folder_of(run_dir) / "README.md").read_text())
    assert "not SAEBench's own" not in card
    assert "corpus" not in card
    assert "`topk` |\n" in card
    assert "abstopk" not in card  # it has no number


def test_a_folder_of_data_counts_for_the_suites_that_read_it(run_dir: Path) -> None:
    topk, folder = run_dir / "checkpoints/topk", "/x/y"
    numbers: list[Metric] = [("unlearning_score", None, 0.5)]
    write_bench(run_dir / "bench", topk, "unlearning", BOTH, numbers, data_folder=folder)
    card = section((folder_of(run_dir) / "README.md").read_text())
    assert "not SAEBench's own" in card  # WMDP and WikiText may have been read from there
    assert "local folder `.../y`" in card
    shutil.rmtree(run_dir / "bench")
    numbers = [("disentangle_score", None, 0.5)]
    write_bench(run_dir / "bench", topk, "ravel", BOTH, numbers, data_folder=folder)
    card = section((folder_of(run_dir) / "README.md").read_text())
    assert "not SAEBench's own" not in card  # RAVEL reads no data set from it


def test_numbers_of_other_weights_are_refused(run_dir: Path) -> None:
    record = write_bench(run_dir / "bench", run_dir / "checkpoints/topk", "core", BOTH, [])
    found = json.loads(record.read_text())
    record.write_text(json.dumps({**found, "identity": {"SAE": "0" * 64}}))
    with pytest.raises(DataError, match=r"run\.json was measured on other weights of topk"):
        folder_of(run_dir)
    # those of an SAE that is not published are left out
    assert folder_of(run_dir / "checkpoints/abstopk").is_dir()
    record.write_text("{}")
    with pytest.raises(DataError, match=r"run\.json: key 'sae' is missing"):
        folder_of(run_dir)
    record.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        folder_of(run_dir)


def test_one_number_in_two_folders_is_refused_unless_of_two_seeds(run_dir: Path) -> None:
    topk = run_dir / "checkpoints/topk"
    for folder, seed, value in (("a", 1, 0.25), ("b", 2, 0.75)):
        write_bench(run_dir / folder, topk, "core", BOTH, [("ce_loss_score", None, value)], seed)
    card = section((folder_of(run_dir) / "README.md").read_text())
    assert "| core: loss recovered | both | 0.500 |" in card
    assert "Seed 1, 2." in card
    write_bench(run_dir / "c", topk, "core", BOTH, [("ce_loss_score", None, 0.5)], seed=2)
    with pytest.raises(DataError, match="b and c both hold core of topk with seed 2"):
        folder_of(run_dir)


def test_a_renamed_checkpoint_and_one_of_no_run_keep_their_numbers(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints/topk"
    numbers = [("ce_loss_score", None, 0.5)]
    write_bench(checkpoint / "bench", checkpoint, "core", BOTH, numbers)
    alone = checkpoint.rename(run_dir.parent / "renamed")
    folder = folder_of(alone, id="layer12/topk")
    assert "| core: loss recovered | both | 0.500 |" in (folder / "README.md").read_text()
    rows = read_rows(folder / "layer12/results/saebench.csv")
    assert {row["sae"] for row in rows} == {"layer12/topk"}
    assert gather(run_dir, {"abstopk": find_saes([run_dir / "checkpoints/abstopk"])[0]}) == []


def test_absorption_is_turned_and_the_headline_protocol_leads_in_every_suite() -> None:
    rows = [
        {"sae": "a", "suite": name, "protocol": protocol, "metric": suite.headline.metric}
        | {"budget": suite.headline.budget, "seed": 0}
        | {"value": 0.25 if protocol == suite.headline.protocol else 0.125}
        for name, suite in SUITES.items()
        for protocol in BOTH
    ]
    lines = headline_markdown(rows, ["a"]).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines[::2]] == [
        f"{suite.headline.protocol} *" for suite in SUITES.values()
    ]
    numbers = [line.split("|")[3].strip() for line in lines]
    assert numbers == ["0.750", "0.875", *["0.250", "0.125"] * (len(SUITES) - 1)]
    assert headline_markdown([], ["a"]) == headline_markdown(rows, ["b"]) == ""
    one_side = [row for row in rows if row["protocol"] == "signed"]
    assert "split" not in headline_markdown(one_side, ["a"])
