"""The stand-in data sets serve what SAEBench's own loading code asks of them, and can be learnt."""

from collections import Counter
from pathlib import Path

import datasets
import datasets.exceptions
import huggingface_hub
import numpy as np
import pytest
import torch

from tests.hub.fake.clients import clients_at
from tests.hub.fake.server import HubServer

pytest.importorskip("sae_bench")
from sae_bench.evals.scr_and_tpp.dataset_creation import get_train_test_data
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
from sae_bench.evals.scr_and_tpp.main import COLUMN2_VALS_LOOKUP
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.sae_bench_utils import dataset_info, dataset_utils
from sklearn.linear_model import LogisticRegression
from transformer_lens import HookedTransformer

from tests.saebench.suite_data import (
    FORGET_REPO,
    QUESTIONS,
    SUBJECTS,
    TEST_SIZE,
    TRAIN_SIZE,
    write_forget_corpus,
)

PROBED = SparseProbingEvalConfig().dataset_names


@pytest.mark.parametrize("name", PROBED)
def test_probing_data_have_every_class_and_a_tiny_random_model_tells_them_apart(
    name: str, suite_hub: HubServer, tiny_model: HookedTransformer
) -> None:
    train, test = dataset_utils.get_multi_label_train_test_data(name, TRAIN_SIZE, TEST_SIZE, 42)
    classes = dataset_info.chosen_classes_per_dataset[name]
    assert {len(train[x]) for x in classes} == {TRAIN_SIZE // 2}
    assert {len(test[x]) for x in classes} == {TEST_SIZE // 2}

    @torch.no_grad()
    def features(texts: list[str]) -> np.ndarray:
        tokens = tiny_model.to_tokens([text[:300] for text in texts])[:, :64]
        _, cache = tiny_model.run_with_cache(tokens, names_filter="blocks.0.hook_resid_post")
        return cache["blocks.0.hook_resid_post"].mean(1).numpy()

    few = 40  # texts a class
    x = np.concatenate([features(train[c][:few]) for c in classes])
    y = np.repeat(np.arange(len(classes)), few)
    probe = LogisticRegression(max_iter=300).fit(x, y)
    held_out = np.concatenate([features(test[c][:few]) for c in classes])
    accuracy = (probe.predict(held_out) == y).mean()
    assert accuracy > 0.5 + 0.5 / len(classes), "half-way from chance to certainty"


def test_every_quadrant_of_scr(suite_hub: HubServer) -> None:
    lookup = ScrAndTppEvalConfig().column1_vals_lookup
    for name, pairs in lookup.items():
        for pair in pairs:
            column2 = COLUMN2_VALS_LOOKUP[name]
            both = get_train_test_data(name, True, TRAIN_SIZE, TEST_SIZE, 42, pair, column2)
            for data, size in zip(both, (TRAIN_SIZE, TEST_SIZE), strict=True):
                assert {len(texts) for texts in data.values()} == {size // 2}
                assert len(data) == 6


def test_questions_have_each_letter_right_equally_often(suite_hub: HubServer) -> None:
    wmdp = datasets.load_dataset("cais/wmdp", "wmdp-bio", split="test")
    others = [datasets.load_dataset("cais/mmlu", name, split="test") for name in SUBJECTS]
    for rows in (wmdp, *others):
        assert isinstance(rows, datasets.Dataset)
        assert Counter(rows["answer"]) == dict.fromkeys(range(4), QUESTIONS // 4)
        assert {len(choices) for choices in rows["choices"]} == {4}


def test_the_scripted_data_set_needs_trust(suite_hub: HubServer, tmp_path: Path) -> None:
    with (
        clients_at(suite_hub, tmp_path),  # where no earlier test trusted it
        pytest.raises(ValueError, match="trust_remote_code"),
    ):
        datasets.load_dataset("codeparrot/github-code", split="train", trust_remote_code=False)


def test_the_forget_corpus_is_gated(suite_hub: HubServer, tmp_path: Path) -> None:
    granted = datasets.load_dataset(FORGET_REPO, split="train")
    assert isinstance(granted, datasets.Dataset)
    local = write_forget_corpus(tmp_path / "bio-forget-corpus.jsonl")
    lines = datasets.load_dataset("json", data_files=str(local), split="train")
    assert isinstance(lines, datasets.Dataset)
    assert {*granted["text"]} == {*lines["text"]}
    with (
        clients_at(suite_hub, tmp_path / "stranger"),
        pytest.raises(datasets.exceptions.DatasetNotFoundError, match="gated"),
    ):
        datasets.load_dataset(FORGET_REPO, split="train")


def test_wikitext_lives_under_its_full_name(suite_hub: HubServer) -> None:
    rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")
    assert isinstance(rows, datasets.Dataset)
    assert sum(len(text) > 50 for text in rows["text"]) == 40


@pytest.mark.skipif(huggingface_hub.__version__.startswith("0."), reason="takes short names")
def test_wikitexts_short_name_is_refused(suite_hub: HubServer) -> None:
    with pytest.raises(Exception, match="namespace/name"):
        datasets.load_dataset("wikitext", "wikitext-2-raw-v1", split="test")


def test_core_streams_its_text(suite_hub: HubServer) -> None:
    rows = datasets.load_dataset("Skylion007/openwebtext", split="train", streaming=True)
    assert len(next(iter(rows))["text"]) > 500
