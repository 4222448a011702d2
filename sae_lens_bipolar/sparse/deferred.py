"""Tensors that answer as if dense, and become dense only when something reads their entries.

A training step hands its latents and pre-activations on as `[batch, d_sae]` tensors. SAELens's
trainer only counts which latents fired, so nothing there needs the matrix.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map
from typing_extensions import override

from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import Projection

# What can be said of the tensor without its entries.
_METADATA = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "is_sparse", "is_cuda", "is_cpu")
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "numel", "__len__", "is_floating_point", "is_complex")
}


class DeferredTensor(torch.Tensor):
    """A tensor whose entries are computed when first needed, by `materialize()`.

    Every torch function but those of shape, dtype and device is applied to the dense tensor, and
    gradients flow through it.
    """

    @staticmethod
    def __new__(cls, like: torch.Tensor, shape: torch.Size, *_: Any) -> "DeferredTensor":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, dtype=like.dtype, device=like.device
        )

    def materialize(self) -> torch.Tensor:
        """The dense tensor, with its gradient."""
        raise NotImplementedError

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The result of `func(self, *args)` without the dense tensor, or NotImplemented."""
        return NotImplemented

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if isinstance(args[0] if args else None, DeferredTensor) and not kwargs:
            result = args[0].answer(func, args[1:])
            if result is not NotImplemented:
                return result
        return _on_dense(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _on_dense(func, args, kwargs)


def _on_dense(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    def dense(value: Any) -> Any:
        return value.materialize() if isinstance(value, DeferredTensor) else value

    return func(*tree_map(dense, args), **tree_map(dense, kwargs or {}))


class SparseLatents(DeferredTensor):
    """Latents of a batch, `[batch, d_sae]`, known by their active pairs.

    Dense equivalent: `support.to_dense(values)`. Counting which latents are non-zero and summing
    over samples or latents stay sparse: `bool`, `float`, `sum` over one dimension, `detach`.

    Args:
        values: `[n_pairs]`, the latents' values.
        support: the pairs.
        coefficients: `[n_pairs]`, what multiplies `W_dec`, where that is not `values` (SAEs that
            rescale by decoder norm).
    """

    support: Support
    values_of_pairs: torch.Tensor
    coefficients: torch.Tensor

    @staticmethod
    def __new__(
        cls, values: torch.Tensor, support: Support, coefficients: torch.Tensor | None = None
    ) -> "SparseLatents":
        self = DeferredTensor.__new__(cls, values, support.shape)
        assert isinstance(self, SparseLatents)
        self.support = support
        self.values_of_pairs = values
        self.coefficients = values if coefficients is None else coefficients
        return self

    @override
    def materialize(self) -> torch.Tensor:
        return self.support.to_dense(self.values_of_pairs)

    @override
    def answer(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        values = self.values_of_pairs
        if func in (torch.Tensor.bool, torch.Tensor.float, torch.Tensor.detach) and not args:
            return SparseLatents(func(values), self.support)
        if func is torch.Tensor.requires_grad.__get__:  # type: ignore[attr-defined]
            return values.requires_grad
        if func in (torch.Tensor.sum, torch.sum) and len(args) == 1 and values.is_floating_point():
            if args[0] in (0, -2):
                return self.support.sum_per_latent(values)
            if args[0] in (1, -1):
                return self.support.sum_per_sample(values)
        return NotImplemented


class DeferredPreactivations(DeferredTensor):
    """Pre-activations `u * scale`, `[batch, d_sae]`, computed again when their entries are read.

    Dense equivalent: `projection.dense() * scale`. Raises `RuntimeError` once the parameters have
    changed, because the result would no longer be what the step computed.

    Args:
        projection: `u`.
        scale: `[d_sae]`, or None.
    """

    projection: Projection
    scale: torch.Tensor | None
    _versions: list[tuple[torch.Tensor, int]]

    @staticmethod
    def __new__(
        cls, projection: Projection, scale: torch.Tensor | None = None
    ) -> "DeferredPreactivations":
        shape = torch.Size((projection.x.shape[0], projection.d_sae))
        self = DeferredTensor.__new__(cls, projection.W_enc, shape)
        assert isinstance(self, DeferredPreactivations)
        self.projection = projection
        self.scale = scale
        tensors = (projection.W_enc, projection.b_enc, projection.x)
        self._versions = [(t, t._version) for t in tensors if t is not None]
        return self

    @override
    def materialize(self) -> torch.Tensor:
        if any(tensor._version != version for tensor, version in self._versions):
            raise RuntimeError(
                "hidden_pre of this training step was not kept, and the parameters it would be "
                "computed from have changed since. Read it before optimizer.step(), or run the "
                "step under sae_lens_bipolar.sparse.mode('dense')."
            )
        u = self.projection.dense()
        return u if self.scale is None else u * self.scale
