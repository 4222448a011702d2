"""Each proximal operator against brute force: the best of every sign pattern."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_bipolar.architectures import prox
from sae_lens_bipolar.errors import ConfigError


class Pair(NamedTuple):
    """An operator at one parameter, and lambda R, with the slope of lambda R on its support."""

    operator: Callable[[torch.Tensor, float], torch.Tensor]
    penalty: Callable[[torch.Tensor, float], torch.Tensor]
    slope: Callable[[float], float]


PENALISED = {
    "relu": Pair(
        lambda u, lam: prox.relu(u, lam),
        lambda v, lam: lam * prox.nonnegative_l1(v),
        lambda lam: lam,
    ),
    "jumprelu": Pair(
        lambda u, lam: prox.jumprelu(u, math.sqrt(2 * lam)),
        lambda v, lam: lam * prox.nonnegative_l0(v),
        lambda lam: 0.0,
    ),
    "soft_threshold": Pair(
        lambda u, lam: prox.soft_threshold(u, lam),
        lambda v, lam: lam * prox.l1(v),
        lambda lam: lam,
    ),
    "hard_threshold": Pair(
        lambda u, lam: prox.hard_threshold(u, math.sqrt(2 * lam)),
        lambda v, lam: lam * prox.l0(v),
        lambda lam: 0.0,
    ),
}
CONSTRAINED = {
    "topk": (prox.topk, prox.nonnegative_k_sparse),
    "abstopk": (prox.abstopk, prox.k_sparse),
}

# Halves make ties and zeros common, the finer grid generic points. Both are dyadic, so squares and
# their sums are exact in float64, and what is not a tie differs by far more than any tolerance.
ENTRY = st.one_of(
    st.integers(-4, 4).map(lambda i: i / 2),
    st.integers(-4096, 4096).map(lambda i: i / 1024),
)
VECTOR = st.lists(ENTRY, min_size=1, max_size=5).map(
    lambda entries: torch.tensor(entries, dtype=torch.float64)
)
# sqrt(2 lambda) is exact for these, so that thresholds are hit exactly by halves.
LAMBDA = st.one_of(st.sampled_from([0.125, 0.5, 1.125, 2.0]), st.floats(0.01, 3.0))


def candidates(u: torch.Tensor, slope: float) -> torch.Tensor:
    """Every vector that is stationary on some sign pattern, and so the minimiser among them.

    On the pattern s in {-1, 0, 1}^P the objective is 1/2 |u - v|^2 + slope sum_i s_i v_i + const.
    """
    signs = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=len(u))), dtype=u.dtype)
    points = (u - slope * signs) * signs.abs()
    return points[(points.sign() == signs).all(dim=-1)]


def objective(u: torch.Tensor, v: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return 0.5 * (u - v).pow(2).sum(dim=-1) + penalty


@pytest.mark.parametrize("name", PENALISED)
@settings(max_examples=60, deadline=None)
@given(u=VECTOR, lam=LAMBDA)
def test_penalised_operators_minimise(name: str, u: torch.Tensor, lam: float) -> None:
    pair = PENALISED[name]
    points = candidates(u, pair.slope(lam))
    values = objective(u, points, pair.penalty(points, lam))
    result = pair.operator(u, lam)
    reached = objective(u, result, pair.penalty(result, lam))
    torch.testing.assert_close(reached, values.min(), rtol=0, atol=1e-12)
    others = points[values > values.min() + 1e-9]
    assert not (others == result).all(dim=-1).any()
    best = points[values <= values.min() + 1e-12]
    if len(best) == 1:
        torch.testing.assert_close(result, best[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONSTRAINED)
@settings(max_examples=60, deadline=None)
@given(u=VECTOR, data=st.data())
def test_constrained_operators_project(name: str, u: torch.Tensor, data: st.DataObject) -> None:
    operator, constraint = CONSTRAINED[name]
    k = data.draw(st.integers(1, len(u)))
    points = candidates(u, 0.0)
    values = objective(u, points, constraint(points, k))
    result = operator(u, k)
    reached = objective(u, result, constraint(result, k))
    assert reached == values.min()
    # Of all minimisers, ours has the lexicographically first support: smallest indices win ties.
    best = points[values == values.min()]
    supports = sorted((row != 0).nonzero().flatten().tolist() for row in best)
    widest = [support for support in supports if len(support) == max(map(len, supports))]
    assert (result != 0).nonzero().flatten().tolist() == widest[0]


@settings(max_examples=60, deadline=None)
@given(u=VECTOR, data=st.data())
def test_no_other_point_is_better(u: torch.Tensor, data: st.DataObject) -> None:
    """Any v at all, not only stationary ones, has an objective no smaller."""
    v = torch.tensor(data.draw(st.lists(ENTRY, min_size=len(u), max_size=len(u)))).double()
    lam, k = data.draw(LAMBDA), data.draw(st.integers(1, len(u)))
    for pair in PENALISED.values():
        ours = pair.operator(u, lam)
        reached = objective(u, ours, pair.penalty(ours, lam))
        assert reached <= objective(u, v, pair.penalty(v, lam)) + 1e-12
    for operator, constraint in CONSTRAINED.values():
        ours = operator(u, k)
        assert objective(u, ours, constraint(ours, k)) <= objective(u, v, constraint(v, k)) + 1e-12


def test_values_by_hand() -> None:
    u = torch.tensor([[-3.0, 2.0, -0.5, 0.0, 1.0], [1.0, -1.0, 1.0, -1.0, 1.0]])
    expected = {
        prox.relu(u, 1.0): [[0.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5],
        prox.jumprelu(u, 1.0): [[0.0, 2.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 1.0]],
        prox.topk(u, 2): [[0.0, 2.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0]],
        prox.soft_threshold(u, 1.0): [[-2.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5],
        prox.hard_threshold(u, 1.0): [[-3.0, 2.0, 0.0, 0.0, 1.0], [1.0, -1.0, 1.0, -1.0, 1.0]],
        prox.abstopk(u, 2): [[-3.0, 2.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0, 0.0]],
    }
    for result, values in expected.items():
        assert result.tolist() == values


def test_topk_keeps_k_entries_and_clips_the_negative_ones() -> None:
    assert prox.topk(torch.tensor([-1.0, 3.0, -2.0]), 2).tolist() == [0.0, 3.0, 0.0]


def test_equal_entries_go_to_the_smallest_indices_however_many_there_are() -> None:
    u = torch.full((4, 1000), -2.0)
    u[:, 700] = -3.0
    expected = [*range(9), 700]
    for operator in (prox.abstopk, lambda u, k: prox.topk(-u, k)):
        for row in operator(u, 10):
            assert row.nonzero().flatten().tolist() == expected


def test_jump_of_the_l0_penalty_is_at_sqrt_two_lambda() -> None:
    """Lemma 1, case II: keeping u costs lambda, dropping it u^2 / 2; equal at sqrt(2 lambda)."""
    lam, theta = 0.5, 1.0
    u = torch.tensor([theta - 1e-9, theta, theta + 1e-9], dtype=torch.float64)
    assert prox.jumprelu(u, math.sqrt(2 * lam)).ne(0).tolist() == [False, True, True]
    assert prox.hard_threshold(-u, math.sqrt(2 * lam)).ne(0).tolist() == [False, True, True]


def test_zero_parameters() -> None:
    u = torch.tensor([-1.0, 0.0, 2.0])
    assert prox.relu(u, 0.0).tolist() == [0.0, 0.0, 2.0]
    assert prox.jumprelu(u, 0.0).tolist() == [0.0, 0.0, 2.0]
    assert prox.soft_threshold(u, 0.0).tolist() == u.tolist()
    assert prox.hard_threshold(u, 0.0).tolist() == u.tolist()
    assert prox.abstopk(u, 3).tolist() == u.tolist()


@settings(max_examples=40, deadline=None)
@given(u=VECTOR, lam=LAMBDA, data=st.data())
def test_two_sided_operators_are_the_split_of_one_sided_ones(
    u: torch.Tensor, lam: float, data: st.DataObject
) -> None:
    """op_two(u) = op_one([u, -u]) folded: the polarity split, operator by operator."""

    def fold(doubled: torch.Tensor) -> torch.Tensor:
        positive, negative = doubled.chunk(2, dim=-1)
        return positive - negative

    both = torch.cat([u, -u])
    assert torch.equal(prox.soft_threshold(u, lam), fold(prox.relu(both, lam)))
    assert torch.equal(prox.hard_threshold(u, lam), fold(prox.jumprelu(both, lam)))
    if u.abs().unique().numel() == len(u):  # else the tie goes by another index
        k = data.draw(st.integers(1, len(u)))
        assert torch.equal(prox.abstopk(u, k), fold(prox.topk(both, k)))


def test_regularisers_by_hand() -> None:
    z = torch.tensor([[0.0, 2.0, 1.0], [0.0, -2.0, 0.0]])
    assert prox.l1(z).tolist() == [3.0, 2.0]
    assert prox.l0(z).tolist() == [2.0, 1.0]
    assert prox.nonnegative_l1(z).tolist() == [3.0, math.inf]
    assert prox.nonnegative_l0(z).tolist() == [2.0, math.inf]
    assert prox.k_sparse(z, 1).tolist() == [math.inf, 0.0]
    assert prox.nonnegative_k_sparse(z, 2).tolist() == [0.0, math.inf]


def test_gradients_pass_on_the_support_only() -> None:
    u = torch.tensor([-3.0, 2.0, -0.5, 1.0], requires_grad=True)
    prox.abstopk(u, 2).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


OPERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": lambda u: prox.relu(u, 1.0),
    "jumprelu": lambda u: prox.jumprelu(u, 1.0),
    "topk": lambda u: prox.topk(u, 1),
    "soft_threshold": lambda u: prox.soft_threshold(u, 1.0),
    "hard_threshold": lambda u: prox.hard_threshold(u, 1.0),
    "abstopk": lambda u: prox.abstopk(u, 1),
    "l1": prox.l1,
    "l0": prox.l0,
    "nonnegative_l1": prox.nonnegative_l1,
    "nonnegative_l0": prox.nonnegative_l0,
    "k_sparse": lambda z: prox.k_sparse(z, 1),
    "nonnegative_k_sparse": lambda z: prox.nonnegative_k_sparse(z, 1),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_infinities_and_nan_are_rejected(name: str, bad: float) -> None:
    with pytest.raises(ConfigError, match=r"holds \d NaN and \d infinite"):
        OPERATORS[name](torch.tensor([1.0, bad]))


def test_tensors_without_floats_or_entries_are_rejected() -> None:
    for bad in (torch.tensor([1, 2]), torch.tensor(1.0), torch.zeros(3, 0)):
        with pytest.raises(ConfigError, match="floating-point tensor"):
            prox.abstopk(bad, 1)


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_thresholds_are_validated(value: float) -> None:
    u = torch.ones(3)
    for operator in (prox.relu, prox.soft_threshold):
        with pytest.raises(ConfigError, match="lambda_="):
            operator(u, value)
    for operator in (prox.jumprelu, prox.hard_threshold):
        with pytest.raises(ConfigError, match="theta="):
            operator(u, value)


@pytest.mark.parametrize("k", [0, -1, 4, 1.0, True])
def test_k_is_validated(k: int) -> None:
    for function in (prox.topk, prox.abstopk, prox.k_sparse, prox.nonnegative_k_sparse):
        with pytest.raises(ConfigError, match="k="):
            function(torch.ones(3), k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("k", [256, 2048])
def test_counts_are_exact_in_every_dtype(dtype: torch.dtype, k: int) -> None:
    """bfloat16 rounds 257 to 256, and float16 2049 to 2048."""
    z = torch.ones(4096, dtype=dtype)
    z[k + 1 :] = 0
    assert prox.l0(z).item() == prox.nonnegative_l0(z).item() == k + 1
    assert prox.k_sparse(z, k) == prox.nonnegative_k_sparse(z, k) == math.inf
    assert prox.k_sparse(z, k + 1) == prox.nonnegative_k_sparse(z, k + 1) == 0
