"""Where the corpus that is to be forgotten is put for SAEBench, given or from the Hub."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_lens_bipolar.saebench import BenchConfig
from sae_lens_bipolar.saebench.suites import unlearning


def place(folder: Path, corpus: str | None) -> Path:
    job: Any = SimpleNamespace(folder=folder, config=BenchConfig(forget_corpus=corpus))
    unlearning._place_corpus(job)
    return folder / "sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl"


def test_a_file_that_is_given_is_linked(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "given"}\n')
    placed = place(tmp_path / "job", str(corpus))
    assert placed.is_symlink()
    assert placed.read_text() == corpus.read_text()


def test_the_hubs_texts_are_written_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "one\ntwo", "title": "left out"}, {"text": "three"}]
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> list[dict[str, str]]:
        asked.append((args, kwargs))
        return rows

    monkeypatch.setattr(unlearning.datasets, "load_dataset", load)
    lines = place(tmp_path, None).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": row["text"]} for row in rows]
    assert asked == [(("cais/wmdp-bio-forget-corpus",), {"split": "train"})]


def test_what_is_needed_from_outside() -> None:
    hub = unlearning.needs(BenchConfig())
    assert [need.kind for need in hub] == ["data set"] * 4
    assert "--forget-corpus" in hub[-1].otherwise
    given = unlearning.needs(BenchConfig(forget_corpus="a.jsonl"))
    assert given[-1] == ("file", "a.jsonl", "")
    assert given[:-1] == hub[:-1]
