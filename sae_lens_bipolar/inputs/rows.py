"""Rows of local files, one by one and without the network; a row is a dict of columns.

`datasets` would read the same files, but asks an address on the network for each.
"""

import json
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.paths import open_regular

_ROWS_AT_ONCE = 256
_CHUNK = 1 << 16
_DECODER = json.JSONDecoder()


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .json, .csv or .parquet file.

    Raises:
        DataError: if the file is empty, damaged or not a regular file; names it, and the line.
    """
    with open_regular(path) as file:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        try:
            for number, row in enumerate(READERS[path.suffix.lower()](file)):
                if not isinstance(row, dict):
                    raise DataError(
                        f"{path}, row {number}: expected an object with columns, found "
                        f"{type(row).__name__}"
                    )
                yield row
        except DataError:
            raise
        except (OSError, RecursionError, ValueError) as error:  # pandas and pyarrow raise these
            raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _json_lines(file: BinaryIO) -> Iterator[Any]:
    for number, line in enumerate(TextIOWrapper(file, encoding="utf-8"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error


def _json(file: BinaryIO) -> Iterator[Any]:
    """A list of objects, one object per line, one object of columns, or one object."""
    text = TextIOWrapper(file, encoding="utf-8")
    first = text.readline(_CHUNK)
    while first and not first.strip():
        first = text.readline(_CHUNK)
    if first.lstrip().startswith("["):
        yield from _json_list(first.lstrip()[1:], text)
        return
    try:
        json.loads(first)
    except json.JSONDecodeError:
        yield from _columns(json.loads(first + text.read()))
        return
    text.seek(0)
    rows = _json_lines(file)
    only = next(rows)
    second = next(rows, None)
    if second is None:
        yield from _columns(only)
        return
    yield only
    yield second
    yield from rows


def _columns(value: Any) -> Iterator[Any]:
    """Rows of an object whose values are lists of equal length; otherwise it is the only row."""
    lists = isinstance(value, dict) and all(isinstance(column, list) for column in value.values())
    if lists and value and len({len(column) for column in value.values()}) == 1:
        for cells in zip(*value.values(), strict=True):
            yield dict(zip(value, cells, strict=True))
        return
    yield value


def _json_list(text: str, rest: TextIOWrapper) -> Iterator[Any]:
    """The values of a JSON list, read piece by piece; `text` is what follows its bracket."""
    at, size = 0, _CHUNK
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if text[at : at + 1] == "]":
            return
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError:
            more = rest.read(size)
            if not more:
                raise
            text, at, size = text[at:] + more, 0, 2 * size
            continue
        yield value
        size = _CHUNK


def _csv(file: BinaryIO) -> Iterator[Any]:
    import pandas

    for table in pandas.read_csv(file, chunksize=_ROWS_AT_ONCE):
        missing = table.isna()
        for row, absent in zip(table.to_dict("records"), missing.to_dict("records"), strict=True):
            yield {str(key): None if absent[key] else value for key, value in row.items()}


def _parquet(file: BinaryIO) -> Iterator[Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
    for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
        yield from batch.to_pylist()


READERS: dict[str, Callable[[BinaryIO], Iterator[Any]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
