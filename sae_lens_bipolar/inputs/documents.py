"""Text, document by document.

It comes from the State of the Union corpus (`sotu`), a local file or folder, or a data set on the
Hugging Face Hub.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError
from datasets.naming import camelcase_to_snakecase

from sae_lens_bipolar.errors import ConfigError, DataError, did_you_mean
from sae_lens_bipolar.files.paths import open_regular
from sae_lens_bipolar.inputs.fetch import check_hub
from sae_lens_bipolar.inputs.paragraphs import parts_of
from sae_lens_bipolar.inputs.rows import READERS, rows_of
from sae_lens_bipolar.inputs.sotu import sotu_rows

_SUFFIXES = (".txt", *READERS)
_TOKEN_COLUMNS = ("input_ids", "tokens")  # as SAELens and Transformers call rows of token ids
_LIST_CHARACTERS = 1 << 26  # up to here a corpus is a list; beyond, a stream
_WHOLE_FILE = 1 << 26  # bytes up to which a text file among others is one document
_PART_IDS = 256  # token ids in a part of a single long row


@dataclass(frozen=True)
class Document:
    """One text, or one row of token ids, kept whole on one side of a split."""

    text: str
    name: str
    ids: np.ndarray | None = field(default=None, compare=False)  # token ids `[n]` instead of text
    part_of: str = ""  # the text that this is a part of, if the source holds only one

    @property
    def n_characters(self) -> int:
        """Its length in characters, about; a token id counts as five."""
        return len(self.text) if self.ids is None else 5 * len(self.ids)


def load_documents(
    source: str | Path = "sotu",
    *,
    text_column: str | None = None,
    split: str = "train",
    subset: str | None = None,
    streaming: bool | None = None,
    limit: int | None = None,
) -> list[Document] | Iterator[Document]:
    """Read documents: a list, or if there are many an iterator that never holds them all.

    `source` is "sotu"; a .txt (one document), .jsonl, .json, .csv or .parquet file (one document
    per row); a folder of such files; a folder written by `Dataset.save_to_disk`; or the name of a
    data set on the Hugging Face Hub (`split` and `subset` choose within it). `text_column` defaults
    to "text", or without one to token ids in "input_ids" or "tokens", which are taken as they
    are. Blank documents are skipped; at most `limit` documents are read.

    A source that holds a single document is cut at paragraphs of about a thousand characters, each
    a document with the same `part_of`, so that one text can train and hold out. `streaming=None`
    gives a list up to 64 Mi characters (2**26) and a stream beyond; True always gives a stream,
    False always a list. Local files are read without the network.

    Raises:
        ConfigError: for an empty source or the current directory, which is never meant, and for
            an impossible limit.
        DataError: if the source is missing, unreachable, empty, or has no such column; names the
            columns it has.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1, or None for all documents")
    if not isinstance(source, str | Path) or os.path.normpath(str(source).strip() or ".") == ".":
        raise ConfigError(
            f"the corpus {'' if source is None else str(source)!r} is empty or the current "
            "directory: give the name of a file, folder or data set (dataset_path, corpus)"
        )
    documents = (
        document
        for document in _read(str(source), text_column, split, subset, streaming is True)
        if document.ids is not None or document.text.strip()
    )
    documents = islice(_cut_if_single(documents), limit)
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += document.n_characters
        if streaming or (streaming is None and size > _LIST_CHARACTERS):
            return chain(held, documents)
    if not held:
        raise DataError(f"{source} holds no text: every document is empty, or there are none")
    return held


def texts_of(documents: Iterable[Document]) -> Iterator[str]:
    """The text of each document; raises DataError for rows of token ids, which have none."""
    for document in documents:
        if document.ids is not None:
            raise DataError(f"{document.name} is a row of token ids; text is needed here")
        yield document.text


def _cut_if_single(documents: Iterator[Document]) -> Iterator[Document]:
    first, second = next(documents, None), next(documents, None)
    if first is None:
        return
    if second is not None or first.part_of:
        yield from (document for document in (first, second) if document is not None)
        yield from documents
    elif first.ids is not None:
        for number, start in enumerate(range(0, len(first.ids), _PART_IDS)):
            ids = first.ids[start : start + _PART_IDS]
            yield Document("", f"{first.name}:{number}", ids, part_of=first.name)
    else:
        yield from _parts(first.text, first.name)


def _parts(text: str | TextIO, name: str) -> Iterator[Document]:
    parts = list(islice(texts := parts_of(text), 2))
    if len(parts) < 2:
        yield from (Document(part, name) for part in parts)
        return
    for number, part in enumerate(chain(parts, texts)):
        yield Document(part, f"{name}:{number}", part_of=name)


def _read(
    source: str, column: str | None, split: str, subset: str | None, streaming: bool
) -> Iterator[Document]:
    if source == "sotu":
        return (Document(row["text"], row["name"]) for row in sotu_rows())
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path, column, whole=0)
    if path.is_dir():
        return _read_folder(path, column, split)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    if looks_local or path.suffix.lower() in _SUFFIXES:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no file or folder {source}{did_you_mean(path.name, siblings)}")
    return _read_hub(source, column, split, subset, streaming)


def _read_file(path: Path, column: str | None, whole: int) -> Iterator[Document]:
    """Documents of one file; a text file of more than `whole` bytes is cut at paragraphs."""
    suffix = path.suffix.lower()
    if suffix == ".txt":
        yield from _read_text(path, whole)
    elif suffix in READERS:
        yield from _documents(rows_of(path), path.name, column)
    else:
        kind = suffix or "a file without suffix"
        raise DataError(f"{path}: cannot read {kind}, only {', '.join(_SUFFIXES)}")


def _read_text(path: Path, whole: int) -> Iterator[Document]:
    with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        try:
            if path.stat().st_size <= whole:
                yield Document(file.read(), path.name)
            else:
                yield from _parts(file, path.name)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from error


def _read_folder(path: Path, column: str | None, split: str) -> Iterator[Document]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _documents(_stored(path, split), path.name, column)
        return
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file()
    )
    if not files:
        raise DataError(f"{path} holds no {', '.join(_SUFFIXES)} file")
    for file in files:
        for document in _read_file(file, column, whole=_WHOLE_FILE):
            within = str(file.relative_to(path).parent / document.name)
            yield replace(document, name=within)


def _stored(path: Path, split: str) -> Iterable[Any]:
    """The rows of a folder written by `save_to_disk`."""
    try:
        stored = datasets.load_from_disk(str(path))
    except (OSError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is not a data set that `datasets` can load: {type(error).__name__}: "
            f"{str(error)[:500]}"
        ) from error
    if isinstance(stored, datasets.Dataset):
        return stored
    if split not in stored:
        raise DataError(f"{path} has no split {split!r}, only {', '.join(map(str, stored))}")
    return stored[split]


def _read_hub(
    name: str, column: str | None, split: str, subset: str | None, streaming: bool
) -> Iterator[Document]:
    try:
        online = check_hub(name, "dataset", "README.md", None, partial(_is_cached, name), DataError)
    except DataError as error:
        hint = did_you_mean(name, ["sotu", *(entry.name for entry in Path().iterdir())])
        raise DataError(f"{error}{hint}") from error
    try:
        rows = datasets.load_dataset(
            name,
            subset,
            split=split,
            streaming=streaming and online,  # without a network only prepared copies are there
        )
        yield from _documents(rows, name, column)
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError, DatasetsError) as error:
        raise DataError(
            f"data set {name!r} (subset {subset!r}, split {split!r}) cannot be read: "
            f"{type(error).__name__}: {str(error)[:500]}"
        ) from error


def _is_cached(name: str) -> bool:
    """Whether `datasets` keeps a prepared copy, which it uses when the Hub does not answer."""
    *owner, last = name.split("/")
    folder = "___".join([*owner, camelcase_to_snakecase(last)])
    return any(Path(datasets_config.HF_DATASETS_CACHE).glob(f"{folder}/*/*/*/dataset_info.json"))


def _documents(rows: Iterable[Any], name: str, column: str | None) -> Iterator[Document]:
    found: str | None = column
    for number, row in enumerate(rows):
        if found is None:
            found = next((key for key in ("text", *_TOKEN_COLUMNS) if key in row), "text")
        value = row.get(found)
        if (value is None and found in row) or (number and found not in row):
            continue  # no text in this row
        ids = _token_ids(value)
        if not isinstance(value, str) and ids is None:
            readable = [key for key, other in row.items() if isinstance(other, str)]
            readable += [key for key, other in row.items() if _token_ids(other) is not None]
            raise DataError(
                f"{name} has no text column {found!r}{f' in row {number}' if number else ''}; its "
                f"columns are {', '.join(map(str, row))}"
                + (
                    f": pass text_column={readable[0]!r}?"
                    if readable
                    else ", none of which holds text or token ids"
                )
            )
        yield Document(value if isinstance(value, str) else "", f"{name}:{number}", ids)


def _token_ids(value: Any) -> np.ndarray | None:
    """`value` as token ids `[n]`; None if it is not a list of whole numbers from 0 to 2**31 - 1."""
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        return None
    if isinstance(value[0], bool) or not isinstance(value[0], int | np.integer):
        return None
    try:
        found = np.asarray(value)
    except ValueError:  # not all of one kind
        return None
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**31:
        return None
    return found.astype(np.int32)
