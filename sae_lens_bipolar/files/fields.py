"""Checked reading of JSON and YAML: every complaint is a DataError that names the file and the key.

`where` is how a message names the place, such as `runs/demo/results/summary.json[0]`. Files may
come from a stranger: sizes are checked before anything is read, and nesting and numbers before
anything is built of them.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from sae_lens_bipolar.errors import DataError, shown
from sae_lens_bipolar.files.paths import MEBIBYTE, open_regular

MAX_JSON = 64 * MEBIBYTE  # the census of half a million latents
MAX_YAML = MEBIBYTE // 2
MAX_LINES = 256 * MEBIBYTE  # metrics.jsonl of a long run
MAX_LINE = MEBIBYTE // 4
MAX_DEPTH = 64  # objects and lists inside one another
MAX_PARTS = 1_000_000  # objects and lists in one file: each costs far more memory than its text
MAX_DIGITS = 40  # of a whole number
MAX_WHOLE = 10**MAX_DIGITS
MAX_NAME = 300  # characters
_NUMBER = re.compile(r"[-+]?(?:[0-9_.:]+|0[bx][0-9a-fA-F_]+)")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_file(file: Path, max_bytes: int = MAX_JSON) -> str:
    """Text of a regular UTF-8 file that is not empty and not larger than `max_bytes`."""
    with open_regular(file, max_bytes) as stream:
        content = stream.read(max_bytes + 1)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: {error}") from error
    if not text.strip():
        raise DataError(f"{file}: is empty")
    return text


def read_lines(file: Path) -> Iterator[str]:
    """Lines of a regular UTF-8 file, each with its line break, bounded in length and in number."""
    with open_regular(file, MAX_LINES) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{file}, line {number}: more than {MAX_LINE // 1024} KiB in one line"
                )
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file}, line {number}: not UTF-8 text: {error}") from error


def load_json(file: Path) -> Any:
    """Value of a JSON file."""
    return parse_json(read_file(file), str(file))


def parse_json(text: str, where: str) -> Any:
    """Value of a JSON text, its numbers and its nesting bounded."""
    if text.count("{") + text.count("[") > MAX_PARTS:
        raise DataError(f"{where}: more than {MAX_PARTS:,} objects and lists")
    try:
        value = json.loads(text, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    except RecursionError:
        raise DataError(f"{where}: nested deeper than {MAX_DEPTH} objects and lists") from None
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    _require_shallow(value, where)
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _require_shallow(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for node in level for part in _parts(node) if isinstance(part, dict | list)]
        if not level:
            return
    raise DataError(f"{where}: nested deeper than {MAX_DEPTH} objects and lists")


def _parts(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def load_yaml(file: Path) -> Any:
    """Value of a YAML file; refuses aliases, of which a few can stand for gigabytes."""
    text = read_file(file, MAX_YAML)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise DataError(f"{file}: nested deeper than {MAX_DEPTH} mappings and lists")
            if isinstance(event, yaml.AliasEvent):
                raise DataError(
                    f"{file}: holds the alias *{event.anchor}; write the value out instead"
                )
            if isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
                raise DataError(
                    f"{file}: a number of {len(event.value)} digits; at most {MAX_DIGITS} are read"
                )
        return yaml.load(text, Loader=_LOADER)
    except DataError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: not YAML: {error}{_line_of(error, text)}") from error


def _line_of(error: Exception, text: str) -> str:
    """The line that a YAML error marks, whose number alone says little in a message."""
    mark = getattr(error, "problem_mark", None)
    lines = text.splitlines()
    if mark is None or not 0 <= mark.line < len(lines):
        return ""
    return f"; that line is {shown(lines[mark.line].strip(), 100)!r}"


def _is_long_number(scalar: yaml.ScalarEvent) -> bool:
    return (
        len(scalar.value) > MAX_DIGITS
        and (scalar.implicit[0] or scalar.tag is not None)  # not merely quoted
        and _NUMBER.fullmatch(scalar.value) is not None
    )


def an_object(value: Any, where: str) -> dict[str, Any]:
    """`value`, if it is a JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {kind_of(value)}")
    return value


def a_list(value: Any, where: str) -> list[Any]:
    """`value`, if it is a JSON list."""
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list, found {kind_of(value)}")
    return value


def required(mapping: dict[str, Any], key: str, where: str) -> Any:
    """Value at `key`, which must be there."""
    if key not in mapping:
        raise DataError(f"{where}: key {key!r} is missing")
    return mapping[key]


def check_string(mapping: dict[str, Any], key: str, where: str) -> None:
    """Refuse `mapping` unless it has a string at `key` that is not empty."""
    value = required(mapping, key, where)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {key!r} is {shown(repr(value))}; expected a name")
    check_name(value, f"{where}: {key!r}")


def check_name(value: str, where: str) -> None:
    """Refuse a name that is too long to be shown or holds control characters."""
    if len(value) > MAX_NAME:
        raise DataError(f"{where} has {len(value)} characters; a name has at most {MAX_NAME}")
    if shown(value, MAX_NAME) != value or "\n" in value or "\t" in value:
        raise DataError(f"{where} is {value!r}: control characters are not allowed in a name")


def check_field(
    mapping: dict[str, Any], key: str, where: str, nullable: bool = False, optional: bool = False
) -> None:
    """Refuse `mapping` unless it has a number at `key`; `optional` allows neither key nor value."""
    if optional and mapping.get(key) is None:
        return
    value = required(mapping, key, where)
    if value is not None or not nullable:
        check_number(value, f"{where}: {key!r}", finite=False)


def check_number(value: Any, where: str, finite: bool = True) -> None:
    """Refuse what is not an int or float (a boolean is neither), or, if `finite`, not finite.

    A whole number beyond the largest float is refused like an infinite one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} is {kind_of(value)}; expected a number")
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise DataError(f"{where} has more than {MAX_DIGITS} digits; expected a smaller number")
    if finite and not math.isfinite(value):
        raise DataError(f"{where} is {value}; expected a finite number")


def kind_of(value: Any) -> str:
    """What `value` is called in JSON."""
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(
        type(value), "null" if value is None else "a number"
    )
