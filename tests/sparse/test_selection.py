"""Selection equals torch's own, ties and odd widths included, in torch's code and compiled."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_bipolar.sparse import selection
from sae_lens_bipolar.sparse.selection import Ranking, beyond, top_k, where_true

needs_numba = pytest.mark.skipif(not find_spec("numba"), reason="the extra `fast` is not installed")


@pytest.fixture(
    params=["torch", pytest.param("compiled", marks=needs_numba)], scope="module", autouse=True
)
def code(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test here runs in either code, at every size."""
    before = selection._COMPILED_FROM
    selection._COMPILED_FROM = 0 if request.param == "compiled" else 1 << 62
    yield request.param
    selection._COMPILED_FROM = before


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    share=st.floats(0.001, 1.0),
    ranking=st.sampled_from(["magnitude", "value"]),
    coarse=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_top_k_finds_the_k_largest(
    rows: int, columns: int, share: float, ranking: Ranking, coarse: bool, seed: int
) -> None:
    u = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if coarse:  # many ties
        u = u.mul(2).round()
    k = max(1, int(share * columns))
    values, indices = top_k(u, k, ranking)
    ranked = u.abs() if ranking == "magnitude" else u
    expected = ranked.topk(k).values
    assert torch.equal(ranked.gather(1, indices).sort(descending=True).values, expected)
    assert torch.equal(values, u.gather(1, indices))
    assert all(len(set(row.tolist())) == k for row in indices)


@pytest.mark.parametrize(
    ("columns", "k"),
    [
        (8192, 51),
        (12288, 76),
        (13696, 256),
        (4096, 1),
        (4099, 1),
        (8191, 51),
        (8197, 9),
        (4134, 256),
    ],
)
@pytest.mark.parametrize("ranking", ["magnitude", "value"])
def test_top_k_through_several_levels_of_groups(columns: int, k: int, ranking: Ranking) -> None:
    u = torch.randn(9, columns)
    values, indices = top_k(u, k, ranking)
    expected = (u.abs() if ranking == "magnitude" else u).topk(k).indices
    assert torch.equal(indices.sort().values, expected.sort().values)
    assert torch.equal(values, u.gather(1, indices))


def test_top_k_by_hand() -> None:
    u = torch.tensor([[0.5, -3.0, 2.0, 1.0]])
    assert sorted(top_k(u, 2, "magnitude")[0].flatten().tolist()) == [-3.0, 2.0]
    assert sorted(top_k(u, 2, "value")[0].flatten().tolist()) == [1.0, 2.0]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 100),
    level=st.floats(-1, 3),
    two_sided=st.booleans(),
    coarse=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_beyond_finds_entries_above_or_below_their_thresholds(
    rows: int, columns: int, level: float, two_sided: bool, coarse: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(rows, columns, generator=generator)
    upper, lower = level + torch.rand(2, columns, generator=generator)
    if coarse:  # many at their thresholds
        u, upper, lower = u.round(), upper.round(), lower.round()
    mask = u > upper
    if two_sided:
        mask |= u < -lower
    row, column, values = beyond(u, upper, lower if two_sided else None)
    assert torch.equal(row, mask.nonzero()[:, 0])
    assert torch.equal((row * columns + column).sort().values, mask.flatten().nonzero()[:, 0])
    assert torch.equal(values, u[row, column])


def test_beyond_by_hand_leaves_out_the_thresholds_themselves() -> None:
    u = torch.tensor([[0.5, 1.0, -2.0], [3.0, -1.0, -2.5]])
    upper, lower = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([9.0, 1.0, 2.0])
    rows, columns, values = beyond(u, upper, lower)
    assert rows.tolist() == [0, 1, 1]
    assert columns.tolist() == [1, 0, 2]
    assert values.tolist() == [1.0, 3.0, -2.5]
    assert beyond(u, upper)[2].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e5])
def test_beyond_finds_the_next_float_and_not_the_threshold(size: float, two_sided: bool) -> None:
    """Of 67 columns, 64 form groups; one entry of a group beyond its threshold is enough."""
    upper = size * (1 + torch.rand(67, generator=torch.Generator().manual_seed(0)))
    lower, infinity = 2 * upper, torch.tensor(float("inf"))
    for edge, just_beyond in (
        (upper, torch.nextafter(upper, infinity)),
        (-lower, torch.nextafter(-lower, -infinity)),
    ):
        sought = two_sided or edge is upper
        on_edges = torch.stack([upper, -lower])
        assert beyond(on_edges, upper, lower if two_sided else None)[0].numel() == 0
        for column in range(67):
            u = on_edges.clone()
            u[1, column] = just_beyond[column]
            rows, columns, values = beyond(u, upper, lower if two_sided else None)
            assert (rows.tolist(), columns.tolist()) == (([1], [column]) if sought else ([], []))
            assert torch.equal(values, u[rows, columns])


def test_beyond_infinite_thresholds_and_entries() -> None:
    u = torch.tensor([[1.0, float("inf"), -float("inf"), float("nan"), 2.0]]).repeat(2, 20)
    upper = torch.full((100,), float("inf"))
    assert beyond(u, upper)[0].numel() == 0
    assert beyond(u, upper, torch.zeros(100))[2].tolist() == [-float("inf")] * 40
    assert beyond(u, torch.ones(100))[2].tolist().count(2.0) == 40


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 70),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**20),
)
def test_where_true_is_nonzero(rows: int, columns: int, density: float, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    for ours, theirs in zip(where_true(mask), mask.nonzero(as_tuple=True), strict=True):
        assert torch.equal(ours, theirs)


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_compiled_code_runs_in_as_many_parts_as_torch_has_threads(
    threads: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    u = torch.randn(7, 500)
    values, indices = top_k(u, 20, "value")
    assert torch.equal(values.sort(descending=True).values, u.topk(20).values)
    assert torch.equal(values, u.gather(1, indices))
    upper, lower = torch.full((500,), 1.5), torch.full((500,), 1.0)
    for below in (None, lower):
        mask = u > upper if below is None else (u > upper) | (u < -below)
        rows, columns, found = beyond(u, upper, below)
        hits = torch.zeros_like(mask)
        hits[rows, columns] = True
        assert torch.equal(hits, mask)
        assert torch.equal(rows, rows.sort().values)
        assert torch.equal(found, u[rows, columns])


@pytest.mark.parametrize("fill", [float("nan"), -float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("ranking", ["magnitude", "value"])
def test_any_float_gives_k_different_columns(fill: float, ranking: Ranking) -> None:
    for rows in (torch.full((3, 400), fill), torch.randn(3, 400)):
        rows[:, ::7] = fill
        indices = top_k(rows, 9, ranking)[1]
        assert all(len(set(row.tolist())) == 9 for row in indices)
        assert 0 <= int(indices.min()) <= int(indices.max()) < 400


@needs_numba
def test_compiled_code_is_for_float32_rows_on_cpu_without_gradient(code: str) -> None:
    u = torch.randn(8, 96)
    suits = selection._suits_compiled_code
    assert suits(u) == (code == "compiled")
    for other in (u.double(), u.t(), u.clone().requires_grad_(), u.to("meta")):
        assert not suits(other)


@needs_numba
@pytest.mark.parametrize(
    "variable", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_THREADING_LAYER": "workqueue"}]
)
def test_compiled_code_is_left_alone_where_it_is_slow_or_unsafe(variable: dict[str, str]) -> None:
    program = "from sae_lens_bipolar.sparse import selection; print(selection._kernels())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | variable,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None", done.stdout + done.stderr


@needs_numba
@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_code_leaves_torch_its_threads(threads: int) -> None:
    program = f"""
import torch
from sae_lens_bipolar.sparse import selection
torch.set_num_threads({threads})
kernels = selection._kernels()
selection.top_k(torch.randn(64, 2048), 5, "value")
selection.beyond(torch.randn(64, 2048), torch.ones(2048))
print(kernels is not None, torch.get_num_threads())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", str(threads)], done.stdout + done.stderr


@needs_numba
def test_compiled_code_runs_in_a_forked_process_with_one_thread() -> None:
    """As a data loader's workers do; the threads of the parent are not theirs."""
    program = """
import os, torch
from sae_lens_bipolar.sparse import selection
torch.set_num_threads(2)
u, upper = torch.randn(64, 2048), torch.ones(2048)
expected = selection.top_k(u, 5, "value")[0].sum(), selection.beyond(u, upper)[2].sum()
if not (child := os.fork()):
    torch.set_num_threads(1)
    found = selection.top_k(u, 5, "value")[0].sum(), selection.beyond(u, upper)[2].sum()
    os._exit(0 if torch.allclose(torch.stack(found), torch.stack(expected)) else 1)
print(selection._kernels() is not None, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["True", "0"], done.stdout + done.stderr
