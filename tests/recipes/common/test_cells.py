"""Cells run once, survive each other's failures, and give the same files in sequence and on Ray."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.common import cells
from recipes.common.scales import Resources
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json, write_json


def counting(params: Mapping[str, Any], directory: Path) -> None:
    """Count the calls beside the result, and fail as often as asked."""
    count = directory / "count"
    n = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(n))
    if n <= params.get("failures", 0):
        raise RuntimeError(f"failure {n}")
    write_json(
        directory / "result.json", {"value": params["x"] * 2, "draw": torch.rand(3).tolist()}
    )


def test_each_cell_writes_into_its_own_directory_once(tmp_path: Path) -> None:
    todo = [cells.Cell("a", {"x": 1}), cells.Cell("b", {"x": 2})]
    cells.run_cells(todo, counting, tmp_path)
    cells.run_cells(todo, counting, tmp_path)
    assert [read_json(tmp_path / f"cells/{n}/result.json")["value"] for n in "ab"] == [2, 4]
    assert [(tmp_path / f"cells/{n}/count").read_text() for n in "ab"] == ["1", "1"]


def test_the_seconds_of_a_cell_are_those_of_all_its_attempts(tmp_path: Path) -> None:
    def slow_then_done(params: Mapping[str, Any], directory: Path) -> None:
        time.sleep(0.2)
        counting(params, directory)

    todo = [cells.Cell("a", {"x": 1, "failures": 1}), cells.Cell("b", {"x": 2})]
    with pytest.raises(cells.CellError):
        cells.run_cells(todo, slow_then_done, tmp_path, resources=Resources(retries=0))
    first = cells.seconds_of(tmp_path, todo)
    assert all(seconds >= 0.2 for seconds in first.values())
    cells.run_cells(todo, slow_then_done, tmp_path)
    second = cells.seconds_of(tmp_path, todo)
    assert second["a"] >= first["a"] + 0.2
    assert second["b"] == first["b"]


def test_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [cells.Cell(name, {"x": 1}) for name in ("a.seed0", "a.seed1", "b.seed0")]
    assert not cells.run_cells(todo, counting, tmp_path, only="*seed0")
    assert "1 of 3 cells are still to run: a.seed1" in capsys.readouterr().out
    assert not (tmp_path / "cells/a.seed1").exists()
    assert cells.run_cells(todo, counting, tmp_path)
    assert (tmp_path / "cells/a.seed0/count").read_text() == "1"


def test_random_draws_depend_on_the_cell_alone(tmp_path: Path) -> None:
    a, b = cells.Cell("a", {"x": 1}), cells.Cell("b", {"x": 1})
    cells.run_cells([a, b], counting, tmp_path / "one")
    torch.rand(5)
    cells.run_cells([b, a], counting, tmp_path / "two")
    files = [tmp_path / run / f"cells/{n}/result.json" for n in "ab" for run in ("one", "two")]
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1]
    assert contents[2] == contents[3]
    assert contents[0] != contents[2]


def test_threads_are_the_cells_and_then_as_before(tmp_path: Path) -> None:
    def threads(params: Mapping[str, Any], directory: Path) -> None:
        write_json(directory / "result.json", torch.get_num_threads())

    before = torch.get_num_threads()
    cells.run_cells([cells.Cell("a", {})], threads, tmp_path, resources=Resources(num_cpus=2))
    assert read_json(tmp_path / "cells/a/result.json") == 2
    assert torch.get_num_threads() == before


def test_a_failed_cell_is_retried_then_reported_and_loses_nothing_else(tmp_path: Path) -> None:
    todo = [
        cells.Cell("always", {"x": 1, "failures": 99}),
        cells.Cell("once", {"x": 2, "failures": 1}),
        cells.Cell("never", {"x": 3}),
    ]
    with pytest.raises(cells.CellError, match=r"1 of 3 cells failed: always .*failure 2"):
        cells.run_cells(todo, counting, tmp_path, resources=Resources(retries=1))
    assert (tmp_path / "cells/always/count").read_text() == "2"
    assert "RuntimeError: failure 2" in (tmp_path / "cells/always/error.txt").read_text()
    assert read_json(tmp_path / "cells/once/result.json")["value"] == 4
    assert read_json(tmp_path / "cells/never/result.json")["value"] == 6
    # The same command again runs the failed cell only.
    with pytest.raises(cells.CellError):
        cells.run_cells(todo, counting, tmp_path, resources=Resources(retries=0))
    assert (tmp_path / "cells/always/count").read_text() == "3"
    assert (tmp_path / "cells/never/count").read_text() == "1"


def test_a_cell_that_writes_no_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(cells.CellError, match="without writing"):
        cells.run_cells([cells.Cell("a", {})], lambda params, directory: None, tmp_path)


def test_other_parameters_and_equal_names_are_refused(tmp_path: Path) -> None:
    cells.run_cells([cells.Cell("a", {"x": 1})], counting, tmp_path)
    with pytest.raises(ConfigError, match="x: 1 there, 2 now"):
        cells.run_cells([cells.Cell("a", {"x": 2})], counting, tmp_path)
    with pytest.raises(ConfigError, match="different names"):
        cells.run_cells([cells.Cell("a", {}), cells.Cell("a", {})], counting, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_without_ray_a_cluster_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"sae-lens-bipolar\[cluster\]"):
        cells.run_cells([cells.Cell("a", {"x": 1})], counting, tmp_path, cluster="auto")


def _train(params: Mapping[str, Any], directory: Path) -> None:
    """A few hundred steps of an autoencoder: enough for threads or seeds to show in the digits."""
    x = torch.randn(256, 32)
    w = torch.nn.Parameter(torch.randn(32, params["width"]))
    optimiser = torch.optim.Adam([w], lr=0.01)
    loss = torch.zeros(())
    for _ in range(200):
        loss = (x - (x @ w).relu() @ w.t()).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    write_json(directory / "result.json", {"loss": loss.item(), "w": w.detach()[0].tolist()})


def _die_once(params: Mapping[str, Any], directory: Path) -> None:
    """Leave a mark of each start; the first start of the chosen cell kills its own process."""
    (directory / f"start-{time.time_ns()}").touch()
    if params["dies"] and len(list(directory.glob("start-*"))) == 1:
        os.kill(os.getpid(), 9)
    _train(params, directory)


@pytest.fixture
def two_workers() -> Iterator[str]:
    """Address of a Ray cluster on this machine with two cores to give."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield str(cluster.address)
    cluster.shutdown()


@pytest.mark.slow
def test_two_ray_workers_give_the_files_of_a_sequential_run_even_if_one_is_killed(
    tmp_path: Path, two_workers: str
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know the tests
    todo = [cells.Cell(f"w{w}", {"width": w, "dies": w == 48}) for w in (16, 32, 48, 64)]
    alive = [cell._replace(params={**cell.params, "dies": False}) for cell in todo]
    cells.run_cells(alive, _die_once, tmp_path / "sequence")
    cells.run_cells(todo, _die_once, tmp_path / "ray", cluster=two_workers)
    for cell in todo:
        in_sequence, on_ray = (
            tmp_path / run / "cells" / cell.name / "result.json" for run in ("sequence", "ray")
        )
        assert in_sequence.read_bytes() == on_ray.read_bytes()
        starts = list(on_ray.parent.glob("start-*"))
        assert len(starts) == (2 if cell.params["dies"] else 1)  # nobody else was started again


@pytest.mark.slow
def test_a_failure_on_ray_is_retried_then_reported(tmp_path: Path, two_workers: str) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    todo = [
        cells.Cell("always", {"x": 1, "failures": 99}),
        cells.Cell("once", {"x": 2, "failures": 1}),
    ]
    with pytest.raises(cells.CellError, match=r"1 of 2 cells failed: always .*failure 2"):
        cells.run_cells(
            todo, counting, tmp_path, cluster=two_workers, resources=Resources(retries=1)
        )
    assert "RuntimeError: failure 2" in (tmp_path / "cells/always/error.txt").read_text()
    assert read_json(tmp_path / "cells/once/result.json")["value"] == 4
