"""The table of measured step times: what it decides, how it is kept, and what is refused."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens_bipolar import sparse
from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.sparse import choice, measured
from sae_lens_bipolar.sparse.measured import Row, Work, read_table, table_of, write_table

CPU = torch.device("cpu")
W_DEC = torch.empty(1000, 64)  # [d_sae, d_in]


def row(**changes: Any) -> Row:
    fields: dict[str, Any] = {
        "precision": "float32",
        "d_in": 64,
        "d_sae": 1000,
        "k": 10,
        "batch": 128,
        "seconds": {"dense": 1.0, "sparse": 0.9, "triton": 0.5},
    }
    return Row(**{**fields, **changes})


def work(**changes: Any) -> Work:
    fields: dict[str, Any] = {"precision": "float32", "d_in": 64, "d_sae": 1000, "density": 0.01}
    return Work(**{**fields, "batch": 128, **changes})


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path))
    measured.measured_here.cache_clear()
    yield
    measured.measured_here.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "winner"),
    [
        ({"dense": 1.0, "sparse": 0.9, "triton": 0.5}, "triton"),
        ({"dense": 1.0, "sparse": 0.5, "triton": 0.9}, "sparse"),
        ({"dense": 1.0, "sparse": 2.0, "triton": 0.96}, "dense"),  # within the margin
        ({"dense": 1.0, "sparse": 2.0, "triton": 0.95}, "triton"),
        ({"dense": 1.0}, "dense"),
    ],
)
def test_the_winner_is_at_least_5_percent_faster_than_the_dense_step(
    seconds: dict[str, float], winner: str
) -> None:
    assert row(seconds=seconds).winner == winner


@pytest.mark.parametrize(
    ("changes", "answers"),
    [
        ({}, True),
        ({"d_in": 65, "d_sae": 2000, "density": 0.001, "batch": 4096}, True),
        ({"d_in": 63}, False),
        ({"d_sae": 999}, False),
        ({"batch": 127}, False),
        ({"density": 0.0101}, False),
        ({"precision": "bfloat16"}, False),
    ],
)
def test_a_row_says_nothing_of_smaller_or_denser_work(
    changes: dict[str, Any], answers: bool
) -> None:
    assert work(**changes).fastest([row()]) == ("triton" if answers else None)


def test_the_largest_row_that_applies_decides() -> None:
    slow = {"dense": 1.0, "triton": 2.0}
    rows = [row(), row(d_sae=2000, k=20, seconds=slow), row(d_sae=4000, k=10)]
    assert work(d_sae=1500, density=0.01).fastest(rows) == "triton"
    assert work(d_sae=3000, density=0.01).fastest(rows) == "dense"
    assert work(d_sae=9000, density=0.001).fastest(rows) == "triton"


def test_a_table_that_was_written_is_read_and_decides() -> None:
    assert sparse.arithmetic(0.01, W_DEC, 128) == "sparse"  # by density
    assert sparse.arithmetic(0.5, W_DEC, 128) == "dense"
    path = write_table([row(seconds={"dense": 1.0, "sparse": 3.0})], CPU)
    assert path == table_of(CPU)
    assert read_table(path, CPU) == (row(seconds={"dense": 1.0, "sparse": 3.0}),)
    assert sparse.arithmetic(0.01, W_DEC, 128) == "dense"
    assert sparse.arithmetic(0.01, W_DEC, 127) == "sparse"  # no row says anything of it
    assert sparse.arithmetic(0.01, W_DEC.double(), 128) == "sparse"  # nor of float64
    with sparse.mode("sparse"):
        assert sparse.arithmetic(0.01, W_DEC, 128) == "sparse"
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse.arithmetic(0.01, W_DEC, 128) == "sparse"
    write_table([row(d_sae=500, k=400, seconds={"dense": 1.0, "sparse": 0.5})], CPU)
    assert sparse.arithmetic(0.5, W_DEC, 128) == "sparse"


def test_a_gpu_without_a_table_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that torch lacks here stands for it; `meta` has no crossover either."""
    W_dec = torch.empty(1000, 64, device="meta")
    assert sparse.is_always_dense(W_dec)
    assert sparse.arithmetic(1e-4, W_dec, 4096) == "dense"
    monkeypatch.setattr(choice, "measured_here", lambda _: (row(),))
    monkeypatch.setattr(choice, "precision", lambda _: "float32")  # `meta` knows no autocast
    assert not sparse.is_always_dense(W_dec)
    monkeypatch.setattr(choice.triton, "usable", lambda *_: True)
    assert sparse.arithmetic(1e-4, W_dec, 4096) == "triton"
    assert sparse.arithmetic(0.011, W_dec, 4096) == "dense"
    monkeypatch.setattr(choice.triton, "usable", lambda *_: False)  # no Triton any more
    assert sparse.arithmetic(1e-4, W_dec, 4096) == "sparse"


def test_a_gpu_without_a_table_is_told_of_tune(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measured, "device_name", lambda _: "NVIDIA Test")
    look = measured.measured_here.__wrapped__  # without its cache
    assert look(torch.device("cuda")) == ()
    assert "NVIDIA Test" in caplog.text
    assert "sae-lens-bipolar tune" in caplog.text
    caplog.clear()
    assert look(CPU) == ()
    assert not caplog.text


def test_modes_overrule() -> None:
    with sparse.mode("dense"):
        assert sparse.is_always_dense(W_DEC)
        assert sparse.arithmetic(1e-4, W_DEC, 128) == "dense"
    with sparse.mode("triton"):
        assert sparse.arithmetic(0.9, W_DEC, 128) in ("triton", "sparse")  # where it is installed
        assert sparse.arithmetic(0.9, W_DEC.double(), 128) == "sparse"
        assert sparse.arithmetic(0.9, W_DEC.bfloat16(), 128) == "dense"


def broken(table: dict[str, Any], how: str) -> Any:
    rows = table["rows"]
    if how == "no list":
        table["rows"] = {}
    elif how == "rows missing":
        del table["rows"]
    elif how == "k above d_sae":
        rows[0]["k"] = 1001
    elif how == "no dense":
        del rows[0]["seconds"]["dense"]
    elif how == "another arithmetic":
        rows[0]["seconds"]["magic"] = 0.1
    elif how == "zero seconds":
        rows[0]["seconds"]["triton"] = 0
    elif how == "seconds in words":
        rows[0]["seconds"]["triton"] = "fast"
    elif how == "size in words":
        rows[0]["batch"] = "128"
    elif how == "true for a size":
        rows[0]["d_in"] = True
    elif how == "another precision":
        rows[0]["precision"] = "float8"
    elif how == "one field more":
        rows[0]["winner"] = "triton"
    elif how == "another device":
        table["device"] = "NVIDIA H100"
    elif how == "other versions":
        table["versions"]["torch"] = "1.0"
    elif how == "another format":
        table["format"] = 0
    elif how == "a list":
        return rows
    return table


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no list", "'rows': expected a list"),
        ("rows missing", "'rows' is missing"),
        ("k above d_sae", "'k' is 1001"),
        ("no dense", "'dense' is missing"),
        ("another arithmetic", "'magic'"),
        ("zero seconds", "seconds of 'triton' is 0"),
        ("seconds in words", "seconds of 'triton' is a string"),
        ("size in words", "'batch' is '128'"),
        ("true for a size", "'d_in' is True"),
        ("another precision", "'precision' is 'float8'"),
        ("one field more", "'winner'"),
        ("another device", "device is 'NVIDIA H100'"),
        ("other versions", "versions is"),
        ("another format", "format is 0"),
        ("a list", "expected an object"),
    ],
)
def test_what_is_malformed_is_refused_with_a_sentence_and_not_used(
    how: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_table([row(seconds={"dense": 1.0, "sparse": 3.0})], CPU)
    table = broken(copy.deepcopy(json.loads(path.read_text())), how)
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=said) as refused:
        read_table(path, CPU)
    assert str(path) in str(refused.value)
    with caplog.at_level(logging.WARNING):
        assert sparse.arithmetic(0.01, W_DEC, 128) == "sparse"  # as without a table
        assert sparse.arithmetic(0.01, W_DEC, 128) == "sparse"
    (warning,) = caplog.records  # once per process
    assert "is not used" in warning.getMessage()
    assert said in warning.getMessage()


def test_a_torn_table_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    path = write_table([row()], CPU)
    path.write_text(path.read_text()[:50])
    assert sparse.arithmetic(0.01, W_DEC, 128) == "sparse"
    assert "not JSON" in caplog.text


def test_the_precision_is_autocasts_or_that_of_products() -> None:
    assert measured.precision(CPU) == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert measured.precision(CPU) == "bfloat16"
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, name in ((True, "tf32"), (False, "float32")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert measured.precision(torch.device("cuda")) == name
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
