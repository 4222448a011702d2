"""Deferred tensors behave as the dense ones, and stay sparse where the trainer needs no entries."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_bipolar.sparse.deferred import DeferredPreactivations, SparseLatents
from sae_lens_bipolar.sparse.ops import encode_top_k
from sae_lens_bipolar.sparse.projection import Projection

BATCH, D_IN, D_SAE, K = 9, 5, 40, 4


def make() -> tuple[SparseLatents, torch.Tensor, torch.Tensor]:
    """Latents, the same dense, and the encoder weight both depend on."""
    torch.manual_seed(0)
    W_enc = torch.randn(D_IN, D_SAE, dtype=torch.float64, requires_grad=True)
    projection = Projection(torch.randn(BATCH, D_IN, dtype=torch.float64), W_enc)
    support, values = encode_top_k(projection, K)
    u = projection.dense()
    kept = u.abs().topk(K).indices
    dense = torch.zeros_like(u).scatter(1, kept, u.gather(1, kept))
    return SparseLatents(values, support), dense, W_enc


OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "arithmetic": lambda z: 2 * z + 1 - z / 3,
    "right operand": lambda z: torch.ones(D_SAE, dtype=z.dtype) * z,
    "product": lambda z: z @ torch.eye(D_SAE, dtype=z.dtype),
    "indexing": lambda z: z[2:5, ::3],
    "magnitude": lambda z: z.abs().pow(2).sum(),
    "sum over samples": lambda z: z.sum(0),
    "sum over samples, from the end": lambda z: z.sum(-2),
    "sum over latents": lambda z: z.sum(1),
    "sum over latents, from the end": lambda z: z.sum(-1),
    "sum by name": lambda z: torch.sum(z, dim=-1),
    "sum, kept": lambda z: z.sum(-1, keepdim=True),
    "sum of all": lambda z: z.sum(),
    "function": torch.tanh,
    "stack": lambda z: torch.stack([z, z]),
    "where": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "einsum": lambda z: torch.einsum("bj,bj->b", z, z),
    "float": lambda z: z.float(),
    "to_dense": lambda z: z.to_dense(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_and_their_gradients_are_those_of_the_dense_tensor(name: str) -> None:
    latents, dense, W_enc = make()
    ours, theirs = OPERATIONS[name](latents), OPERATIONS[name](dense)
    assert_close(ours.to_dense(), theirs)
    weights = torch.randn(theirs.shape, dtype=theirs.dtype)
    assert_close(
        torch.autograd.grad((ours * weights).sum(), W_enc)[0],
        torch.autograd.grad((theirs * weights).sum(), W_enc)[0],
    )


def test_it_says_of_itself_what_the_dense_tensor_says() -> None:
    latents, dense, _ = make()
    assert isinstance(latents, torch.Tensor)
    for tensor in (latents, latents.bool(), latents.bool().float()):
        assert tensor.shape == dense.shape
        assert (tensor.ndim, tensor.dim(), tensor.numel(), len(tensor)) == (2, 2, 360, BATCH)
        assert not tensor.is_sparse
        assert tensor.device == dense.device
    assert latents.dtype == dense.dtype
    assert latents.bool().dtype == torch.bool
    assert latents.requires_grad
    assert not latents.detach().requires_grad
    assert not latents.bool().requires_grad
    assert repr(latents.detach()) == repr(dense.detach())
    assert latents.tolist() == dense.tolist()
    assert_close(copy.deepcopy(latents.detach()), dense.detach())


class LargestResult(TorchDispatchMode):
    """The most entries any operation's result has."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.entries = max(self.entries, tensor.numel())
        return result


def test_counting_as_the_trainer_does_makes_no_dense_tensor() -> None:
    latents, dense, _ = make()
    latents.values_of_pairs.data[0] = 0.0  # an active latent may still be exactly 0
    dense = latents.support.to_dense(latents.values_of_pairs)

    def count(z: torch.Tensor) -> list[torch.Tensor]:
        # sae_lens 6.54, training/sae_trainer.py:401-409 and :462
        firing = z.bool().float()
        did_fire = firing.sum(-2).bool()
        if did_fire.is_sparse:
            did_fire = did_fire.to_dense()
        return [did_fire, firing.sum(0), z.bool().float().sum(-1).to_dense().mean()]

    with torch.no_grad(), LargestResult() as seen:
        ours = count(latents)
    assert seen.entries < BATCH * D_SAE
    for actual, expected in zip(ours, count(dense), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    with LargestResult() as seen:  # the same watch does see a dense tensor
        latents.abs()
    assert seen.entries == BATCH * D_SAE


def test_preactivations_are_recomputed_with_their_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, D_IN)
    W_enc, b_enc = torch.randn(D_IN, D_SAE, requires_grad=True), torch.randn(D_SAE)
    scale = torch.rand(D_SAE, requires_grad=True)
    deferred = DeferredPreactivations(Projection(x, W_enc, b_enc), scale)
    dense = (x @ W_enc + b_enc) * scale
    assert deferred.shape == dense.shape
    assert torch.equal(deferred + 0, dense)
    ours = torch.autograd.grad(deferred.pow(2).sum(), [W_enc, scale])
    for actual, expected in zip(
        ours, torch.autograd.grad(dense.pow(2).sum(), [W_enc, scale]), strict=True
    ):
        assert_close(actual, expected)


def test_preactivations_of_changed_parameters_are_refused() -> None:
    W_enc = torch.randn(D_IN, D_SAE)
    deferred = DeferredPreactivations(Projection(torch.randn(BATCH, D_IN), W_enc))
    W_enc.mul_(0.5)
    assert deferred.shape == (BATCH, D_SAE)
    with pytest.raises(RuntimeError, match=r"before optimizer\.step"):
        deferred.sum()
