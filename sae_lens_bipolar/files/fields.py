"""Checked reading of JSON: every complaint is a DataError that names the file and the key.

`where` is how a message names the place, such as `runs/demo/results/summary.json[0]`.
"""

import json
import math
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import DataError


def read_file(file: Path) -> str:
    """Text of a UTF-8 file that is not empty."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: {error}") from error
    if not text.strip():
        raise DataError(f"{file}: is empty")
    return text


def load_json(file: Path) -> Any:
    """Value of a JSON file."""
    try:
        return json.loads(read_file(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON: {error}") from error


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
        raise DataError(f"{where}: {key!r} is {value!r}; expected a name")


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
    """Refuse what is not an int or float (a boolean is neither), or, if `finite`, not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where} is {kind_of(value)}; expected a number")
    if finite and not math.isfinite(value):
        raise DataError(f"{where} is {value}; expected a finite number")


def kind_of(value: Any) -> str:
    """What `value` is called in JSON."""
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(
        type(value), "null" if value is None else "a number"
    )
