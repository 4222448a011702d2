"""Commands stopped in four ways at moments spread over them, and run again: the ends are equal."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import (
    Command,
    commands,
    content,
    end,
    load_all,
    progress_bars_of_one_process,
    start,
)

STOPS = 10  # per command; `train` has forty in `test_kills`
STOPS_A_RUN = 4  # then it is left to end
WAYS = ((signal.SIGKILL,), (signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT))
# A signal before `main` begins ends a process as it ends any other.
CODES = (-signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM, 130, 143)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def known(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dirs: dict[str, Path], tiny_text: Path
) -> dict[str, Command]:
    load_all()
    return commands(tmp_path_factory.mktemp("commands"), tiny_model_dirs["gpt2"], tiny_text)


@pytest.fixture(autouse=True)
def own_bars() -> Iterator[None]:
    with progress_bars_of_one_process():
        yield


@pytest.mark.parametrize("name", ["bench", "publish", "report", "explore", "demo"])
def test_ten_stops_in_four_ways_end_with_the_same_bytes(
    name: str, known: dict[str, Command], tmp_path: Path
) -> None:
    command, log = known[name], tmp_path / "log"
    whole = tmp_path / "whole" / "run"
    command.prepare(whole)
    began = time.monotonic()
    assert end(start(command.words(whole), log)) == 0, log.read_text()[-3000:]
    duration = time.monotonic() - began
    expected = content(whole, command.made)
    assert expected

    draw, stops, runs, found = random.Random(name), 0, 0, Counter[int]()
    while stops < STOPS:
        runs += 1
        run = tmp_path / f"{runs}" / "run"  # its name stands in what it writes
        command.prepare(run)
        for _ in range(STOPS_A_RUN):
            child = start(command.words(run), log)
            time.sleep(draw.uniform(0.01, duration))
            for number in WAYS[stops % len(WAYS)]:
                os.kill(child, number)
            code = end(child)
            found[code] += 1
            if code == 0:
                break
            said = log.read_text()
            assert code in CODES, said[-3000:]
            assert "Traceback" not in said, said[-3000:]
            stops += 1
        assert end(start(command.words(run), log)) == 0, log.read_text()[-3000:]
        assert _names_aside(content(run, command.made), run) == _names_aside(expected, whole)
        assert not [*run.rglob(".sae-lens-bipolar-*.tmp")], "scratch of a killed writer"
    print(f"{name}: {stops} stops in {runs} runs of {duration:.1f} s: exit codes {dict(found)}")


def _names_aside(found: dict[str, bytes], run: Path) -> dict[str, bytes]:
    """Content without the place of the run, which some files name."""
    return {name: data.replace(str(run).encode(), b"RUN") for name, data in found.items()}
