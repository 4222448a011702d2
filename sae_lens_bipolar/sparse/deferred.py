"""Tensors whose entries are computed when something reads them, and from then on are dense.

A training step hands its latents and pre-activations on as `[batch, d_sae]` tensors. SAELens's
trainer only counts which latents fired, so nothing there needs the matrix. Code that does read or
write entries gets the dense tensor with its gradient, and what it writes is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import Projection

_T = TypeVar("_T", bound="DeferredTensor")
_PROPERTIES = (
    *("shape", "dtype", "device", "layout", "ndim"),
    *("is_sparse", "is_cuda", "is_cpu", "requires_grad"),
)
_METHODS = ("size", "dim", "numel", "__len__", "is_floating_point", "is_complex")
# What is known of the tensor without its entries.
_METADATA = {getattr(torch.Tensor, name).__get__ for name in _PROPERTIES} | {
    getattr(torch.Tensor, name) for name in _METHODS
}
# These ask for the gradient with respect to the tensor itself.
_OF_ITSELF = {
    torch.Tensor.retain_grad,
    torch.Tensor.register_hook,
    torch.Tensor.register_post_accumulate_grad_hook,
}


@dataclass(eq=False)
class Entries:
    """The entries of a deferred tensor: how they are computed, then the dense tensor itself.

    Args:
        compute: the dense tensor, differentiable in `inputs`.
        inputs: the tensors it depends on.
    """

    compute: Callable[[], torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    dense: torch.Tensor | None = None
    with_gradient: bool = field(default_factory=torch.is_grad_enabled)

    def read(self) -> torch.Tensor:
        """The dense tensor; the same one at every call, so that writing to it is seen by all."""
        if self.dense is None:
            device = self.inputs[0].device.type
            # As it was when the step ran, whatever the reader's own context is.
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(self.with_gradient),
                torch.autocast(device, enabled=False),
            ):
                self.dense = self.compute()
        return self.dense


class DeferredTensor(torch.Tensor):
    """A tensor that is dense from the first time its entries are read or written.

    Until then only shape, dtype, device and what `answer` knows come without them. Everything
    else, views and operations in place included, is done to the one dense tensor.

    Raises:
        RuntimeError: if the gradient with respect to the tensor itself is asked for. The step does
            not compute through the tensor's entries, so that gradient is unknown.
    """

    entries: Entries

    @classmethod
    def of(cls: type[_T], entries: Entries, like: torch.Tensor, shape: torch.Size) -> _T:
        """A tensor with these entries, of this shape and of the dtype and device of `like`."""
        self: _T = _Defer.apply(cls, entries, like, shape, *entries.inputs)  # type: ignore[assignment]
        self.entries = entries
        return self

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has read or written the entries."""
        return self.entries.dense is None

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The result of `func(self, *args)` without the dense tensor, or NotImplemented."""
        return NotImplemented

    @classmethod
    @override
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, DeferredTensor) and first.is_untouched and not kwargs:
            if func in _METADATA:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args)
            result = first.answer(func, args[1:])
            if result is not NotImplemented:
                return result
        _refuse_gradient_of_itself(func, args, kwargs)
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # For code that bypasses torch functions, such as assignment to part of another tensor.
        # Autograd has recorded the operation by then, on this tensor and not on the dense one.
        if func._schema.is_mutable and any(
            isinstance(argument, DeferredTensor) and declared.is_write
            for declared, argument in zip(func._schema.arguments, args, strict=False)
        ):
            raise RuntimeError(f"{func} would write to a deferred tensor; write to z.to_dense()")
        return func(*_dense(args, torch.Tensor.detach), **_dense(kwargs or {}, torch.Tensor.detach))


def _dense(tree: Any, then: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """The arguments with the dense tensor in place of each deferred one."""

    def dense(value: Any) -> Any:
        if not isinstance(value, DeferredTensor):
            return value
        read = value.entries.read()
        return read if then is None else then(read)

    return tree_map(dense, tree)


def _refuse_gradient_of_itself(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    of = args[:1] if func in _OF_ITSELF else kwargs.get("inputs")
    if func is torch.autograd.grad:
        of = args[1]
    if any(isinstance(tensor, DeferredTensor) for tensor in tree_leaves(of)):
        raise RuntimeError(
            "The gradient with respect to the latents or pre-activations of a training step on "
            "active pairs is not known: the step does not form their dense matrix. Run the step "
            "under sae_lens_bipolar.sparse.mode('dense')."
        )


class _Defer(torch.autograd.Function):
    """Makes a deferred tensor a node of autograd's graph, for functions torch cannot redirect."""

    @staticmethod
    def forward(
        ctx: Any,
        cls: type[DeferredTensor],
        entries: Entries,
        like: torch.Tensor,
        shape: torch.Size,
        *inputs: torch.Tensor,
    ) -> DeferredTensor:
        ctx.entries = entries
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, dtype=like.dtype, device=like.device
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        entries: Entries = ctx.entries
        needed = ctx.needs_input_grad[4:]
        wanted = [t for t, need in zip(entries.inputs, needed, strict=True) if need]
        found = torch.autograd.grad(
            entries.read(), wanted, grad_outputs, retain_graph=True, allow_unused=True
        )
        gradients = iter(found)
        return None, None, None, None, *(next(gradients) if need else None for need in needed)


class SparseLatents(DeferredTensor):
    """Latents of a batch, `[batch, d_sae]`, known by their active pairs.

    Dense equivalent: `support.to_dense(values)`. Counting which latents are non-zero and summing
    over samples or latents stay sparse: `bool()`, `float()` of that, `sum` over one dimension.

    Args:
        values: `[n_pairs]`, the latents' values.
        support: the pairs.
    """

    support: Support
    values_of_pairs: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, support: Support) -> "SparseLatents":
        entries = Entries(lambda: support.to_dense(values), (values,))
        self = cls.of(entries, values, support.shape)
        self.support, self.values_of_pairs = support, values
        return self

    @override
    def answer(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        values = self.values_of_pairs
        # A conversion that changes the dtype is a copy; one that does not is the tensor itself.
        if func is torch.Tensor.bool and not args and values.dtype != torch.bool:
            return SparseLatents(values.bool(), self.support)
        if func is torch.Tensor.float and not args and values.dtype != torch.float32:
            return SparseLatents(values.float(), self.support)
        if func in (torch.Tensor.sum, torch.sum) and len(args) == 1 and values.is_floating_point():
            if args[0] in (0, -2):
                return self.support.sum_per_latent(values)
            if args[0] in (1, -1):
                return self.support.sum_per_sample(values)
        return NotImplemented


class DeferredPreactivations(DeferredTensor):
    """Pre-activations `u * scale`, `[batch, d_sae]`, computed again when their entries are read.

    Dense equivalent: `projection.dense() * scale`.

    Args:
        projection: `u`.
        scale: `[d_sae]`, or None.

    Raises:
        RuntimeError: when first read after the parameters have changed, because the result would
            not be what the step computed.
    """

    projection: Projection
    scale: torch.Tensor | None

    @staticmethod
    def __new__(
        cls, projection: Projection, scale: torch.Tensor | None = None
    ) -> "DeferredPreactivations":
        p = projection
        read = [t for t in (p.W_enc, p.b_enc, p.x) if t is not None]
        versions = [t._version for t in read]

        def compute() -> torch.Tensor:
            if versions != [t._version for t in read]:
                raise RuntimeError(
                    "hidden_pre of this training step was not kept, and the parameters it would "
                    "be computed from have changed since. Read it before optimizer.step(), or run "
                    "the step under sae_lens_bipolar.sparse.mode('dense')."
                )
            u = p.dense()
            return u if scale is None else u * scale

        inputs = [*read, *(t for t in (p.shift, scale) if t is not None)]
        self = cls.of(Entries(compute, tuple(inputs)), p.W_enc, torch.Size((p.x.shape[0], p.d_sae)))
        self.projection, self.scale = projection, scale
        return self
