"""One large file: cost follows the tokens asked for, and a single text trains and holds out."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.inputs.corpora import Document, load_documents, split_tokens, texts_of
from sae_lens_bipolar.inputs.paragraphs import LONGEST_PART, PART, parts_of
from tests.inputs.test_corpora import Words, rows_of
from tests.tiny_models import make_tokenizer, sentences

WORDS = cast(Any, Words())


def write_book(path: Path, characters: int, end: str = "\n\n") -> Path:
    stream, written, number = sentences(3), 0, 0
    with path.open("w") as file:
        while written < characters:
            number += 1
            written += file.write(f"{number}. " + " ".join(next(stream) for _ in range(6)) + end)
    return path


@pytest.mark.parametrize("name", ["book.txt", "one.jsonl", "one.json", "one.parquet", "saved"])
@pytest.mark.parametrize("characters", [6_000, 300_000])
def test_one_text_trains_and_holds_out(tmp_path: Path, name: str, characters: int) -> None:
    book = write_book(tmp_path / "a.txt", characters)
    text = book.read_text()
    row = datasets.Dataset.from_list([{"text": text}])
    path = tmp_path / name
    if name == "book.txt":
        book.rename(path)
    elif name == "saved":
        row.save_to_disk(str(path))
    elif name.endswith("parquet"):
        row.to_parquet(str(path))
    else:
        path.write_text(json.dumps({"text": text}))
    documents = load_documents(path)
    assert "".join(document.text for document in documents) == text
    for seed in range(5):  # also where the hash puts every part on one side
        split = split_tokens(documents, WORDS, context_size=64, seed=seed)
        assert split.n_train_documents >= 1
        assert split.n_held_out_documents >= 1
        train, held_out = rows_of(split)
        assert not {tuple(row) for row in train} & {tuple(row) for row in held_out}
        n_words = len(text.split())
        assert (len(train) + len(held_out)) * 63 > 0.5 * n_words
    first, again = (
        split_tokens(given, WORDS, context_size=64) for given in (documents, load_documents(path))
    )
    assert rows_of(again) == rows_of(first)


@pytest.mark.parametrize("end", ["\n\n", "\n", " ", ""])
def test_parts_end_where_a_paragraph_ends_and_are_the_text_again(tmp_path: Path, end: str) -> None:
    text = write_book(tmp_path / "a.txt", 50_000, end).read_text()
    parts = list(parts_of(text))
    assert "".join(parts) == text
    assert all(PART <= len(part) <= LONGEST_PART for part in parts[:-1])
    ends = {"\n\n": "\n\n", "\n": "\n", " ": ". ", "": ". "}
    assert all(part.endswith(ends[end]) for part in parts[:-1])
    with (tmp_path / "a.txt").open() as file:
        assert list(parts_of(file)) == parts
    hard = "x" * 30_000
    assert [len(part) for part in parts_of(hard)] == [LONGEST_PART] * 3 + [6_000]


CHILD = """
import resource, sys, time
from tests.inputs.test_long_texts import WORDS
from tests.tiny_models import make_tokenizer
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
tokenizer = make_tokenizer()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
documents = load_documents(sys.argv[1], streaming={"": None, "True": True}[sys.argv[2]])
split = split_tokens(
    documents, tokenizer, context_size=32, max_train_tokens=3200, max_held_out_tokens=640
)
spent = time.process_time() - start
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
print(len(split.train), len(split.held_out), spent, grown / 1024)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "streaming"),
    [("a.txt", ""), ("one.jsonl", ""), ("many.jsonl", ""), ("many.jsonl", "True")],
)
def test_cost_follows_the_tokens_and_not_the_file(
    tmp_path: Path, name: str, streaming: str
) -> None:
    """20 MB of text took 2.8 GiB and 20 s; in a child, so that the peak is this reading's alone."""
    path = write_book(tmp_path / "a.txt", 20_000_000)
    text = path.read_text()
    if name != "a.txt":
        texts = [text] if name == "one.jsonl" else parts_of(text)
        rows = (json.dumps({"text": part}) + "\n" for part in texts)
        (tmp_path / name).write_text("".join(rows))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path / name), streaming],
        capture_output=True,
        text=True,
        check=True,
    )
    train, held_out, seconds, mebibytes = map(float, done.stdout.split())
    assert (train, held_out) == (100, 20)
    assert seconds < 8
    assert mebibytes < 300


def test_a_large_corpus_is_a_stream_and_a_small_one_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_book(tmp_path / "a.txt", 50_000)
    whole = load_documents(path)
    assert isinstance(whole, list)
    monkeypatch.setattr("sae_lens_bipolar.inputs.documents._LIST_CHARACTERS", 10_000)
    stream = load_documents(path)
    assert not isinstance(stream, list)
    assert list(stream) == whole
    assert isinstance(load_documents(path, streaming=False), list)


def test_a_long_document_among_others_stays_on_one_side() -> None:
    """Cut for the tokenizer only: its words are in training or held out, never in both."""
    others = [Document(f"o{i} " * 300, f"other {i}") for i in range(30)]
    long = Document("".join(f"w{i % 997} sentence {i}.\n\n" for i in range(60_000)), "long")
    for seed in range(4):
        split = split_tokens([*others, long], WORDS, context_size=64, seed=seed)
        names = {"train": split.n_train_documents, "held_out": split.n_held_out_documents}
        assert sum(names.values()) == 31
        large = max((len(split.train), "train"), (len(split.held_out), "held_out"))
        assert large[0] > 2_500
        assert ("long" in split.held_out_names) == (large[1] == "held_out")


# Rows of token ids


def token_rows(n: int = 40, length: int = 65) -> list[list[int]]:
    return [[0, *(2 + (i * 97 + j) % 300 for j in range(length - 1))] for i in range(n)]


@pytest.mark.parametrize("column", ["input_ids", "tokens"])
@pytest.mark.parametrize("name", ["saved", "a.parquet", "a.jsonl"])
def test_rows_of_token_ids_are_taken_as_they_are(tmp_path: Path, name: str, column: str) -> None:
    expected = token_rows()
    rows = datasets.Dataset.from_list([{column: row, "n": i} for i, row in enumerate(expected)])
    path = str(tmp_path / name)
    write = {"saved": rows.save_to_disk, "a.parquet": rows.to_parquet, "a.jsonl": rows.to_json}
    write[name](path)
    documents = load_documents(path)
    split = split_tokens(documents, make_tokenizer(), context_size=65, held_out_fraction=0.3)
    train, held_out = rows_of(split)
    assert sorted(train + held_out) == sorted(expected)  # BOS once, no token lost
    assert not {tuple(row) for row in train} & {tuple(row) for row in held_out}
    halves = split_tokens(documents, make_tokenizer(), context_size=33, held_out_fraction=0.3)
    assert len(halves.train) + len(halves.held_out) == 80
    assert {row[0] for row in halves.train["input_ids"]} == {0}
    with pytest.raises(DataError, match="is a row of token ids; text is needed"):
        list(texts_of(documents))


def test_one_long_row_of_token_ids_trains_and_holds_out(tmp_path: Path) -> None:
    ids = [2 + i % 300 for i in range(5_000)]
    datasets.Dataset.from_list([{"input_ids": ids}]).save_to_disk(str(tmp_path / "saved"))
    split = split_tokens(load_documents(tmp_path / "saved"), make_tokenizer(), context_size=33)
    assert len(split.train) > 100
    assert len(split.held_out) > 0


def test_token_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"input_ids": [5, 60_000 + i]}) + "\n" for i in range(9))
    )
    with pytest.raises(DataError, match=r"hold token id 6000\d, and the tokenizer has 384"):
        split_tokens(load_documents(tmp_path / "a.jsonl"), make_tokenizer(), context_size=2)


@pytest.mark.parametrize("ids", [[1.5, 2.0], [-1, 2], [2**31], ["a"], [[1, 2]], [True], []])
def test_what_is_not_token_ids_names_the_columns(tmp_path: Path, ids: list[object]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"input_ids": ids, "body": "x"}) + "\n")
    with pytest.raises(DataError, match=r"no text column 'input_ids'; its columns are .*'body'"):
        load_documents(tmp_path / "a.jsonl")


def test_text_is_read_where_there_is_both(tmp_path: Path) -> None:
    row = {"input_ids": [3, 4], "text": "hello", "label": "x"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert [d.text for d in load_documents(tmp_path / "a.jsonl")] == ["hello"] * 2
    ids = load_documents(tmp_path / "a.jsonl", text_column="input_ids")
    assert [cast(np.ndarray, d.ids).tolist() for d in ids] == [[3, 4]] * 2
    with pytest.raises(DataError, match=r"no text column 'body'; its columns are input_ids, text"):
        load_documents(tmp_path / "a.jsonl", text_column="body")


# Sources that nobody means


@pytest.mark.parametrize("source", ["", "  ", ".", "./", "a/..", Path(), None, 3])
def test_an_empty_corpus_is_refused_and_no_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    (tmp_path / "private.txt").write_text("my diary\n\n" * 500)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is empty or the current directory"):
        load_documents(source)


# Files by themselves


def test_local_files_are_read_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network for a local file")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    rows = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    rows.to_json(str(tmp_path / "a.jsonl"))
    rows.to_csv(str(tmp_path / "a.csv"))
    rows.to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"}]')
    for name in ("a.jsonl", "a.csv", "a.parquet", "a.json"):
        assert [d.text for d in load_documents(tmp_path / name)] == ["one", "two"]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "one"}, {"text": "two"}]',
        ' \n [\n {"text": "one"} ,\n{"text": "two"}\n]\n',
        '{"text": "one"}\n{"text": "two"}\n',
        '{"text": "one"}\n\n{"text": "two"}',
        '{"text": ["one", "two"]}',
        '{\n "text": [\n"one",\n "two"]\n}',
        '{"text": ["one", "two"], "n": [1, 2]}\n',
    ],
)
def test_every_shape_of_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert [d.text for d in load_documents(tmp_path / "a.json")] == ["one", "two"]


def test_a_json_list_across_many_reads(tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + 'ä{["' * (i * 7919 % 9000)} for i in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert [d.text for d in load_documents(tmp_path / "a.json")] == [row["text"] for row in rows]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b',
            r"a\.jsonl cannot be read: .*line 2 is not JSON",
        ),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl cannot be read"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a\.jsonl, row 1: expected an object .*list"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl cannot be read: UnicodeDecodeError"),
        ("a.json", b'[{"text": "a"}, {"text": ', r"a\.json cannot be read"),
        ("a.json", b"{", r"a\.json cannot be read"),
        ("a.json", b"3", r"a\.json, row 0: expected an object .*int"),
        ("a.csv", b'text\n"a\n', r"a\.csv cannot be read"),
        ("a.txt", b"\xff\xfe", r"a\.txt is not UTF-8"),
    ],
)
def test_torn_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_documents(tmp_path / name)


def test_a_damaged_saved_data_set_is_named(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    rows.save_to_disk(str(tmp_path / "saved"))
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(DataError, match="saved"):
        load_documents(tmp_path / "saved")


def test_streams_stop_reading_where_the_tokens_are_met(tmp_path: Path) -> None:
    lines = [json.dumps({"text": " ".join(f"d{i}w{j}" for j in range(40))}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n{torn")
    stream = load_documents(tmp_path / "a.jsonl", streaming=True)
    split = split_tokens(
        stream, WORDS, context_size=8, max_train_tokens=80, max_held_out_tokens=16
    )  # the torn line is never reached
    assert (split.n_train_tokens, split.n_held_out_tokens) == (80, 16)
    assert next(islice(stream, 0, 1)).name.startswith("a.jsonl:")
