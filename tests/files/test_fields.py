"""Files of a stranger are read within limits: small, shallow, regular; every complaint is short."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from sae_lens_bipolar.errors import LONGEST_MESSAGE, BipolarError, DataError, shown
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.files.fields import (
    check_number,
    check_string,
    load_json,
    load_yaml,
    parse_json,
    read_file,
    read_lines,
)

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(9))}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (LAUGHS, "holds the alias *a"),
        ("a: &a 1\nb: *a\n", "holds the alias *a"),
        ("[" * 100_000, "nest"),
        ("a: " + "{b: " * 80 + "1" + "}" * 80, "nested deeper"),
        ("- " * 5_000 + "1", "nested deeper"),
        ("a: " + "9" * 400, "a number of 400 digits"),
        ("a: 0x" + "f" * 400, "a number of 402 digits"),
        ("a: " + "59:" * 400 + "59", "digits"),
        ("a: !!int '" + "9" * 400 + "'", "digits"),
        ("a: " + "9" * 5000, "digits"),
        ("a: [", "not YAML"),
        ("a: 2026-13-45", "not YAML"),
        ("a: !!python/object/apply:os.system [true]", "not YAML"),
        ("# " + "x" * 600_000, "at most 0.5 MiB"),
        ("", "is empty"),
        ("\xff", "not UTF-8"),
    ],
)
def test_yaml_bombs_are_refused_by_name(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"config\.yaml") as caught:
        load_yaml(tmp_path / "config.yaml")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < LONGEST_MESSAGE + 200


def test_ordinary_yaml_is_read(tmp_path: Path) -> None:
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    (tmp_path / "a.yaml").write_text(
        f"seed: 3\nlr: 1.0e-3\nsaes: {{a: [1, null]}}\nsha: {digest}\n"
    )
    expected = {"seed": 3, "lr": 1e-3, "saes": {"a": [1, None]}, "sha": digest}
    assert load_yaml(tmp_path / "a.yaml") == expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested deeper"),
        ("[" * 80 + "]" * 80, "nested deeper"),
        ('{"a": ' + "9" * 400 + "}", "a number of 400 digits"),
        ('{"a": -' + "9" * 5000 + "}", "a number of 5001 digits"),
        ("[" + "[]," * 1_000_001 + "1]", "more than 1,000,000 objects"),
        ('{"a": 1', "not JSON"),
        ("\x00" * 10, "not JSON"),
    ],
)
def test_json_bombs_are_refused_by_name(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    for read in (load_json, read_json):
        with pytest.raises(DataError, match=r"summary\.json") as caught:
            read(tmp_path / "summary.json")
        assert complaint in str(caught.value)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 36)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.json has 65,536\.0 MiB; at most 64 MiB"):
        load_json(tmp_path / "a.json")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [read_file, load_json, load_yaml, read_json])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: object) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(DataError, match=r"config\.yaml is a named pipe"):
        read(tmp_path / "config.yaml")  # type: ignore[operator]


def test_lines_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("{}\n" * 3 + "{")
    assert list(read_lines(file)) == ["{}\n"] * 3 + ["{"]
    file.write_text("{}\n" + "x" * 300_000)
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: more than 256 KiB"):
        list(read_lines(file))
    file.write_bytes(b"{}\n\xff\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not UTF-8"):
        list(read_lines(file))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("x" * 1_000_000, "has 1000000 characters"),
        ("a\x1b]0;title\x07", "control characters"),
        ("a\nb", "control characters"),
        ("abc\u202etxt.exe", "control characters"),
        ("\ud800", "control characters"),
        ("", "expected a name"),
        (3, "expected a name"),
        (["y" * 1_000_000], "expected a name"),
    ],
)
def test_names_are_short_and_printable(name: object, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as caught:
        check_string({"name": name}, "name", "summary.json[0]")
    said = str(caught.value)
    assert "summary.json[0]: 'name'" in said
    assert len(said) < 1_000
    assert said.isprintable()


def test_whole_numbers_beyond_a_float_are_refused() -> None:
    for finite in (True, False):
        with pytest.raises(DataError, match="more than 40 digits"):
            check_number(10**400, "l0", finite=finite)
    check_number(10**40, "l0")


def test_every_error_is_bounded_and_printable() -> None:
    error = BipolarError(f"SAE \x1b[31m{'z' * 5_000_000}\x9b is wrong\nsecond line")
    said = str(error)
    assert len(said) < LONGEST_MESSAGE + 100
    assert said.startswith("SAE \\x1b[31mzzz")
    assert said.endswith("\\x9b is wrong\nsecond line")
    assert "characters left out" in said


def test_shown_leaves_ordinary_text_alone() -> None:
    assert shown("größer als 3 Δ, 日本\n\tfine") == "größer als 3 Δ, 日本\n\tfine"
    assert shown("x" * 201).startswith("x" * 150 + " [1 characters left out]")


def test_constants_of_json_are_still_read() -> None:
    assert parse_json('{"a": -3, "b": 1.5, "c": null}', "x") == {"a": -3, "b": 1.5, "c": None}
    assert json.dumps(parse_json("[NaN, Infinity]", "x")) == "[NaN, Infinity]"
