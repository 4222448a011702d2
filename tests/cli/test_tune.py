"""`tune` measures every arithmetic in turn and writes the table that training then reads."""

from pathlib import Path

import pytest
import torch

from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.runs import step_times
from sae_lens_bipolar.runs.step_times import Shape
from sae_lens_bipolar.sparse import measured


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path))
    measured.measured_here.cache_clear()
    yield
    measured.measured_here.cache_clear()


def test_a_table_of_this_device(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["tune", "--device", "cpu", "--shapes", "8:32:2:16", "--steps", "2"]
    assert main(line) == 0
    rows = measured.measured_here(torch.device("cpu"))
    assert [(r.precision, r.d_in, r.d_sae, r.k, r.batch) for r in rows] == [
        ("float32", 8, 32, 2, 16),
        ("bfloat16", 8, 32, 2, 16),
    ]
    for row in rows:  # Triton's interpreter, which the tests turn on, is not timed
        assert row.seconds.keys() == {"dense", "sparse"}
        assert all(value > 0 for value in row.seconds.values())
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:2] == ["precision", "d_in"]
    assert [line.split()[0] for line in out[1:3]] == ["float32", "bfloat16"]
    assert out[3] == f"table: {measured.table_of(torch.device('cpu'))}"


def test_an_arithmetic_that_fails_is_said_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = step_times._new_step
    said: list[str] = []

    def new_step(*arguments):  # type: ignore[no-untyped-def]
        if step_times.sparse.prefer_sparse(1.0, torch.device("cpu"), torch.float32):
            raise RuntimeError("no such kernel\nand more")
        return made(*arguments)

    monkeypatch.setattr(step_times, "_new_step", new_step)
    row = step_times.measure(Shape(8, 32, 2, 16), "float32", "cpu", 1, said.append)
    assert row is not None
    assert row.seconds.keys() == {"dense"}
    assert row.winner == "dense"
    assert said == ["sparse does not run here: RuntimeError: no such kernel"]


@pytest.mark.parametrize("text", ["8:32", "8:32:2:4:5", "8:x:2", "0:32:2", "8:32:33", "8:-1:1", ""])
def test_a_shape_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=f"shape '{text}' is not allowed"):
        Shape.parse(text)


def test_options_that_are_not_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--shapes", "8:32:2:16"]
    assert main(["tune", "--device", "cpu", *small, "--steps", "0"]) == 2
    assert main(["tune", "--device", "nowhere", *small]) == 2
    assert "device='nowhere' cannot be used" in capsys.readouterr().err
