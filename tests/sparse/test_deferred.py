"""Deferred tensors behave as the dense ones, and stay sparse where the trainer needs no entries."""

import copy
import io
from collections.abc import Callable
from typing import Any

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
    "to": lambda z: z.to(torch.float32),
    "to itself": lambda z: z.to(torch.float64),
    "double": lambda z: z.double(),
    "clone": lambda z: z.clone(),
    "cpu": lambda z: z.cpu(),
    "a row": lambda z: z[3],
    "a mask": lambda z: z[z > 0],
    "transposition": lambda z: z.T @ z,
    "read without gradient, then with": lambda z: (torch.no_grad()(torch.abs)(z), z * z)[1],
    "read in inference mode, then with gradient": lambda z: (
        torch.inference_mode()(torch.abs)(z),
        z * z,
    )[1],
    "a function of autograd": lambda z: Square.apply(z),
    "assignment to another tensor": lambda z: torch.zeros(BATCH, D_SAE, dtype=z.dtype).copy_(z),
    "past torch functions": lambda z: past_torch_functions(z),
}


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * grads[0]


def past_torch_functions(z: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return z.pow(3)


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


# Each changes the tensor, itself or through what shares its memory.
CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "a part set to 0": lambda z: z.__setitem__((slice(None), slice(0, 6)), 0),
    "mul_": lambda z: z.mul_(3),
    "zero_": lambda z: z.zero_(),
    "masked_fill_": lambda z: z.masked_fill_(z > 0, 5.0),
    "fill_ of a view": lambda z: z[:, :6].fill_(7),
    "of a view of a view": lambda z: z.T[3:].view(-1, BATCH)[::2].add_(1),
    "+=": lambda z: z.__iadd__(1),
    "relu_": torch.relu_,
    "relu, in place": lambda z: torch.nn.functional.relu(z, inplace=True),
    "clamp_": lambda z: z.clamp_(0, 1),
    "copy_": lambda z: z.copy_(torch.ones(BATCH, D_SAE, dtype=z.dtype)),
    "index_put_": lambda z: z.index_put_((torch.tensor([0]),), torch.tensor(9.0, dtype=z.dtype)),
    "of its detached self": lambda z: z.detach().zero_(),
    "of its data": lambda z: z.data.mul_(2),
    "of itself in its own dtype": lambda z: z.to(z.dtype).mul_(2),
    "of itself on its own device": lambda z: z.cpu().mul_(2),
    "of its array": lambda z: z.detach().numpy().fill(4),
    "out": lambda z: torch.mul(torch.ones_like(z), 2, out=z.detach()),
    "t_": lambda z: z.t_(),
    "another tensor as its data": lambda z: setattr(z, "data", torch.ones(3, 5, dtype=z.dtype)),
    "init": lambda z: torch.nn.init.zeros_(z),
}


SHAPE_CHANGES = ("t_", "another tensor as its data")


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_written_is_there(name: str, read_before: bool) -> None:
    latents, dense, W_enc = make()
    dense = dense.clone()
    if read_before:
        latents.abs()
    for z in (latents, dense):
        CHANGES[name](z)
    assert not latents.is_untouched
    assert latents.shape == dense.shape
    assert torch.equal(latents + 0, dense)
    assert torch.equal(latents.bool().float().sum(0), dense.bool().float().sum(0))
    assert torch.equal(latents.sum(-1), dense.sum(-1))
    weights = torch.randn(dense.shape, dtype=dense.dtype)
    if name in SHAPE_CHANGES:  # which autograd refuses, as for any tensor
        return
    for f in (lambda z: (z * z * weights).sum(), lambda z: (Square.apply(z) * weights).sum()):
        ours, theirs = (
            torch.autograd.grad(f(z), W_enc, retain_graph=True, allow_unused=True)[0]
            for z in (latents, dense)
        )
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert_close(ours, theirs)


def test_a_copy_is_its_own() -> None:
    latents, dense, _ = make()
    buffer = io.BytesIO()
    torch.save(latents.detach(), buffer)
    buffer.seek(0)
    copies = {
        "clone": latents.clone(),
        "deepcopy": copy.deepcopy(latents.detach()),
        "saved": torch.load(buffer),
        "other dtype": latents.float().double(),
        "counted": latents.bool(),
    }
    latents.zero_()
    for name, copied in copies.items():
        assert type(copied) is torch.Tensor, name
        assert_close(copied, dense.bool() if name == "counted" else dense, check_dtype=False)
    with pytest.raises(RuntimeError, match="deepcopy"):  # as of any tensor of a graph
        copy.deepcopy(latents)


WITH_RESPECT_TO_IT: dict[str, Callable[[torch.Tensor], Any]] = {
    "retain_grad": lambda z: z.retain_grad(),
    "register_hook": lambda z: z.register_hook(print),
    "register_post_accumulate_grad_hook": lambda z: z.register_post_accumulate_grad_hook(print),
    "grad": lambda z: torch.autograd.grad(z.pow(2).sum(), z),
    "grad of several": lambda z: torch.autograd.grad(z.pow(2).sum(), [z]),
    "grad by name": lambda z: torch.autograd.grad(outputs=z.pow(2).sum(), inputs=z),
    "backward": lambda z: z.pow(2).sum().backward(inputs=z),
    "backward of several": lambda z: torch.autograd.backward(z.pow(2).sum(), inputs=[z]),
}


@pytest.mark.parametrize("name", WITH_RESPECT_TO_IT)
def test_a_gradient_with_respect_to_it_is_refused(name: str) -> None:
    """The step has decoded its pairs past it, so it could only be part of the gradient."""
    latents, _, _ = make()
    with pytest.raises(RuntimeError, match=r"not known.*sparse\.mode\('dense'\)"):
        WITH_RESPECT_TO_IT[name](latents)


def test_code_past_torch_functions_may_not_write_to_it() -> None:
    latents, _, _ = make()
    with (
        torch._C.DisableTorchFunctionSubclass(),
        pytest.raises(RuntimeError, match=r"mul_.*z\.to_dense\(\)"),
    ):
        latents.mul_(2)


def test_code_past_torch_functions_may_write_it_to_another_tensor() -> None:
    latents, dense, _ = make()
    sums = torch.ones_like(dense)
    part = torch.zeros(2 * BATCH, D_SAE, dtype=dense.dtype)
    with torch.no_grad():
        part[BATCH:] = latents
        with torch._C.DisableTorchFunctionSubclass():
            sums.add_(latents)
    assert torch.equal(sums, 1 + dense.detach())
    assert torch.equal(part, torch.cat([0 * sums, dense.detach()]))


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
        l0 = z.bool().float().sum(-1).to_dense().mean()
        return [did_fire, firing.sum(0), l0, firing.sum(1), torch.sum(firing, -1)]

    with torch.no_grad(), LargestResult() as seen:
        ours = count(latents)
        facts = (latents.shape, latents.dtype, latents.ndim, latents.device, latents.is_sparse)
        facts += (latents.requires_grad, latents.size(), latents.dim(), latents.numel())
        facts += (len(latents), latents.is_floating_point(), latents.is_complex())
    shape = (BATCH, D_SAE)
    assert facts[:5] == (shape, dense.dtype, 2, dense.device, False)
    assert facts[5:] == (dense.requires_grad, shape, 2, BATCH * D_SAE, BATCH, True, False)
    assert latents.is_untouched
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
