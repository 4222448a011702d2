"""Which latents are active for which samples, and the sums over those pairs."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from sae_lens_bipolar.sparse.triton.gradients import ByLatent

# Sums over pairs read rows at random. On CPU, rows too many for a core's own cache are read a strip
# of columns at a time, of which all rows fit; it pays where each row is read this often, and each
# sum has this many terms.
_STRIPS = (64, 32)
_CACHE_BYTES = 1 << 21
_USES = 16
# Keys from which torch sorts integers by radix.
_RADIX_KEYS = 1 << 15


@dataclass(eq=False)
class Support:
    """The active (sample, latent) pairs, in order of their sample.

    `D` below is the dense `[batch, d_sae]` matrix with a vector over the pairs at its active
    entries and 0 elsewhere: `D = support.to_dense(values)`.

    Args:
        latents: `[n_pairs]`, each pair's latent.
        offsets: `[batch + 1]`, where each sample's pairs begin, then `n_pairs`.
        d_sae: number of latents.
        reading: where Triton kernels take the sums, the dtype they read rows in; None: torch does.
    """

    latents: torch.Tensor
    offsets: torch.Tensor
    d_sae: int
    reading: torch.dtype | None = None

    @property
    def shape(self) -> torch.Size:
        """`[batch, d_sae]`."""
        return torch.Size((self.offsets.numel() - 1, self.d_sae))

    @cached_property
    def samples(self) -> torch.Tensor:
        """`[n_pairs]`, each pair's sample."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=self.latents.numel())

    @cached_property
    def _by_latent(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The pairs in order of their latent: permutation, samples, where each latent begins."""
        # Short keys sort two to three times as fast, and from some number on by radix (torch 2.13,
        # native/cpu/SortingKernel.cpp): four to ten times as fast, so fewer are filled up to it.
        keys = torch.int16 if self.d_sae < 1 << 15 else torch.int32
        n_pairs = self.latents.numel()
        n_keys = _RADIX_KEYS if _RADIX_KEYS // 8 < n_pairs < _RADIX_KEYS else n_pairs
        padded = F.pad(self.latents.to(keys), (0, n_keys - n_pairs), value=torch.iinfo(keys).max)
        order = padded.sort(stable=True).indices
        order = order[:n_pairs]
        counts = torch.bincount(self.latents, minlength=self.d_sae)
        return order, self.samples[order], F.pad(counts.cumsum(0), (1, 0))

    @cached_property
    def _for_kernels(self) -> "ByLatent":
        from sae_lens_bipolar.sparse.triton.gradients import ByLatent

        keys = torch.int16 if self.d_sae < 1 << 15 else torch.int32
        in_order, order = self.latents.to(keys).sort(stable=True)
        each = torch.arange(self.d_sae + 1, dtype=keys, device=order.device)
        # `bincount` would wait for the device.
        return ByLatent.of(order, self.samples[order], torch.searchsorted(in_order, each))

    def to_dense(self, values: torch.Tensor) -> torch.Tensor:
        """`D`, `[batch, d_sae]`, differentiable in `values`, `[n_pairs]`."""
        flat = self.samples * self.d_sae + self.latents
        zeros = values.new_zeros(self.shape.numel())
        return zeros.scatter(0, flat, values).view(self.shape)

    def sum_per_latent(self, values: torch.Tensor) -> torch.Tensor:
        """`D.sum(0)`, `[d_sae]`, differentiable in `values`, `[n_pairs]`."""
        return values.new_zeros(self.d_sae).index_add(0, self.latents, values)

    def sum_per_sample(self, values: torch.Tensor) -> torch.Tensor:
        """`D.sum(1)`, `[batch]`, differentiable in `values`, `[n_pairs]`."""
        return values.new_zeros(self.shape[0]).index_add(0, self.samples, values)

    @torch.no_grad()
    def times(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`D @ rows`, `[batch, d_in]`, for `rows` of shape `[d_sae, d_in]`; no gradient."""
        if self.reading is not None:
            from sae_lens_bipolar.sparse.triton.sums import weighted_sums

            return weighted_sums(self.latents, self.offsets, values.contiguous(), self.read(rows))
        return _weighted_sums(self.latents, self.offsets, values, rows)

    @torch.no_grad()
    def transpose_times(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`D.T @ rows`, `[d_sae, d_in]`, for `rows` of shape `[batch, d_in]`; no gradient."""
        if self.reading is not None:
            from sae_lens_bipolar.sparse.triton.gradients import sums_by_latent

            return sums_by_latent(self._for_kernels, values.contiguous(), self.read(rows))
        order, samples, offsets = self._by_latent
        return _weighted_sums(samples, offsets, values[order], rows)

    @torch.no_grad()
    def left_times_and_sums(
        self, values: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`left_times(values, rows)`, and `D.sum(0)`; no gradient."""
        if self.reading is None:
            return self.left_times(values, rows), self.sum_per_latent(values)
        from sae_lens_bipolar.sparse.triton.gradients import transposed_sums_by_latent

        return transposed_sums_by_latent(self._for_kernels, values.contiguous(), self.read(rows))

    @torch.no_grad()
    def left_times(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`rows.T @ D`, `[d_in, d_sae]`, for `rows` of shape `[batch, d_in]`; no gradient."""
        if values.device.type != "cpu":
            return self.transpose_times(values, rows).t().contiguous()
        order, samples, offsets = self._by_latent
        ordered = values[order]
        out = rows.new_empty(rows.shape[1], self.d_sae)
        width = _strip_width(max(self.d_sae, rows.shape[0]), rows) or _STRIPS[-1]
        identity = torch.eye(width, dtype=rows.dtype) if _products_are_exact() else None
        for strip in _cut(rows.shape[1], width):
            sums = _bags(samples, offsets, ordered, rows[:, strip])
            if identity is None:
                out[strip] = sums.t()
            else:  # takes half the time of torch's transposition
                n = sums.shape[1]
                torch.mm(identity[:n, :n], sums.t(), out=out[strip])
        return out

    @torch.no_grad()
    def dots(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """`(left @ right.T)` at the pairs, `[n_pairs]`; no gradient.

        Args:
            left: `[batch, d_in]`.
            right: `[d_sae, d_in]`.
        """
        if self.reading is not None:
            from sae_lens_bipolar.sparse.triton.sums import dots

            return dots(self.latents, self.offsets, self.read(left), self.read(right))
        if left.device.type != "cpu":
            return self._dots_by_embedding_bag(left, right)
        # Latent by latent, so that a row of `right` is read once and stays in the cache.
        order, samples, offsets = self._by_latent
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse")  # torch warns that CSR is in beta
            pattern = torch.sparse_csr_tensor(
                offsets,
                samples,
                left.new_zeros(samples.numel()),
                (self.d_sae, left.shape[0]),
                check_invariants=False,
            )
            for strip in _strips(samples, offsets, left) or [slice(0, left.shape[1])]:
                torch.sparse.sampled_addmm(
                    pattern,
                    right[:, strip],
                    left[:, strip].t(),
                    beta=float(strip.start > 0),
                    out=pattern,
                )
        ordered = pattern.values()
        return torch.empty_like(ordered).index_copy_(0, order, ordered)

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows as the sums read them: in the dtype `reading`, if Triton kernels take the sums."""
        return rows if self.reading is None else rows.to(self.reading).contiguous()

    def _dots_by_embedding_bag(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        # They are the gradient of embedding_bag with respect to its weights.
        weights = left.new_zeros(self.latents.numel(), requires_grad=True)
        with torch.enable_grad():
            sums = _weighted_sums(self.latents, self.offsets, weights, right.detach())
        return torch.autograd.grad(sums, weights, left)[0]


def _weighted_sums(
    index: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """For each bag `offsets[i]:offsets[i + 1]`, the sum of `weights * rows[index]` over it."""
    strips = _strips(index, offsets, rows)
    if not strips:
        return _bags(index, offsets, weights, rows)
    out = rows.new_empty(offsets.numel() - 1, rows.shape[1])
    for strip in strips:
        out[:, strip] = _bags(index, offsets, weights, rows[:, strip])
    return out


def _bags(
    index: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    return F.embedding_bag(
        index, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _strips(index: torch.Tensor, offsets: torch.Tensor, rows: torch.Tensor) -> list[slice]:
    """Strips of columns to read `rows` in, or none if they are better read whole."""
    n_rows, n_columns = rows.shape
    if (
        rows.device.type != "cpu"
        or n_rows * n_columns * rows.element_size() <= _CACHE_BYTES
        or index.numel() < _USES * max(n_rows, offsets.numel() - 1)
    ):
        return []
    width = _strip_width(n_rows, rows)
    return _cut(n_columns, width) if width else []


def _strip_width(n_rows: int, like: torch.Tensor) -> int:
    """The widest strip of which this many rows fit the cache, or 0."""
    row_bytes = n_rows * like.element_size()
    return next((width for width in _STRIPS if row_bytes * width <= _CACHE_BYTES), 0)


def _cut(n_columns: int, width: int) -> list[slice]:
    return [slice(i, i + width) for i in range(0, n_columns, width)]


def _products_are_exact() -> bool:
    """Whether torch multiplies float32 matrices in float32."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # a precision set by backend, which this does not know
        return False
