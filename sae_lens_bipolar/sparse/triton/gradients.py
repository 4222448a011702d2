"""Gradients of encoder and decoder, each in one pass over the pairs of each latent.

With `g = dL/dxhat` and `v` the values of the pairs of latent i, `xhat_b = sum_i v_bi W_dec_i`:

    dW_dec_i = sum_b v_bi g_b     dW_enc_i = sum_b du_bi x_b     db_enc_i = sum_b du_bi

A program takes one latent and adds up its pairs in registers, so that each gradient is written
once, zeros included, and nothing is added atomically: two runs agree to the bit. A latent with more
than `_SEGMENT` pairs, up to the whole batch, is split: further programs take its further segments
and write their sums to rows behind the gradient's own, and a second kernel adds those to it.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# A launch takes plain numbers for `constexpr` parameters, and `num_warps` beside them.

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sae_lens_bipolar.sparse.triton.sums import warps_of

_SEGMENT = 256  # pairs of one latent that one program adds up
_ELEMENTS = 4096  # that a program reads together
_TILE = 64  # rows and columns that a program transposes
_LATENTS = 4096  # that the segments are counted of together


class ByLatent(NamedTuple):
    """The pairs in order of their latent."""

    order: torch.Tensor  # `[n_pairs]`, the permutation
    samples: torch.Tensor  # `[n_pairs]`, the sample of each
    begins: torch.Tensor  # `[d_sae + 1]`, where each latent's begin, then n_pairs
    segments: torch.Tensor  # `[d_sae + 1]`, where each latent's further segments begin

    @classmethod
    def of(cls, order: torch.Tensor, samples: torch.Tensor, begins: torch.Tensor) -> "ByLatent":
        """With the further segments of each latent, counted on the device."""
        segments = torch.empty(begins.shape, dtype=torch.int64, device=begins.device)
        with torch.cuda.device_of(begins):
            _count_segments[(1,)](begins, segments, begins.numel() - 1, _SEGMENT, _LATENTS)
        return cls(order, samples, begins, segments)


@triton.jit
def _count_segments(begins, segments, d_sae, SEGMENT: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.full([], 0, tl.int64)
    tl.store(segments, total)
    for first in range(0, d_sae, BLOCK):
        latent = first + tl.arange(0, BLOCK)
        inside = latent < d_sae
        begin = tl.load(begins + latent, mask=inside, other=0).to(tl.int64)
        n_pairs = tl.load(begins + latent + 1, mask=inside, other=0).to(tl.int64) - begin
        further = tl.where(n_pairs > SEGMENT, (n_pairs - 1) // SEGMENT, 0)
        tl.store(segments + latent + 1, total + tl.cumsum(further, 0), mask=inside)
        total += tl.sum(further)


@triton.jit
def _sums_by_latent(
    order, samples, begins, segments, d_sae, d, weights, rows, sums, totals,
    TOTALS: tl.constexpr, SEGMENT: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    # Programs from d_sae on take a further segment of a hot latent, which they look up; those left
    # over find it empty.
    further = program - d_sae
    latent = tl.where(further >= 0, 0, program)
    behind = tl.where(further >= 0, d_sae, program + 1).to(tl.int64)
    while behind - latent > 1:
        middle = (latent + behind) // 2
        is_before = tl.load(segments + middle) <= further
        latent = tl.where(is_before, middle, latent)
        behind = tl.where(is_before, behind, middle)
    segment = tl.where(further >= 0, further - tl.load(segments + latent) + 1, 0)
    start = tl.load(begins + latent) + segment * SEGMENT
    end = tl.minimum(start + SEGMENT, tl.load(begins + latent + 1))
    column = tl.arange(0, BLOCK)
    inside = column < d
    sum_of_rows = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([PAIRS], tl.float32)
    for first in range(start, end, PAIRS):
        place = first + tl.arange(0, PAIRS)
        here = place < end
        pair = tl.load(order + place, mask=here, other=0).to(tl.int64)
        row = tl.load(samples + place, mask=here, other=0).to(tl.int64)
        weight = tl.load(weights + pair, mask=here, other=0.0).to(tl.float32)
        mask = here[:, None] & inside[None, :]
        read = tl.load(rows + row[:, None] * d + column[None, :], mask=mask, other=0.0)
        sum_of_rows += tl.sum(weight[:, None] * read.to(tl.float32), axis=0)
        total += weight
    tl.store(sums + program * d + column, sum_of_rows, mask=inside)
    if TOTALS:
        tl.store(totals + program, tl.sum(total))


@triton.jit
def _add_segments(sums, segments, d_sae, d, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    first = tl.load(segments + latent)
    last = tl.load(segments + latent + 1)
    if first < last:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < d
        total = tl.load(sums + latent * d + column, mask=inside, other=0.0)
        for segment in range(first, last):
            total += tl.load(sums + (d_sae + segment) * d + column, mask=inside, other=0.0)
        tl.store(sums + latent * d + column, total, mask=inside)


@triton.jit
def _add_segments_transposed(sums, totals, segments, out, d_sae, d, TILE: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    is_latent, inside = latent < d_sae, column < d
    first = tl.load(segments + latent, mask=is_latent, other=0)
    n_further = tl.load(segments + latent + 1, mask=is_latent, other=0) - first
    most = tl.max(n_further)
    mask = is_latent[:, None] & inside[None, :]
    tile = tl.load(sums + latent[:, None] * d + column[None, :], mask=mask, other=0.0)
    for i in range(most):
        has = (i < n_further)[:, None] & inside[None, :]
        row = d_sae + first + i
        tile += tl.load(sums + row[:, None] * d + column[None, :], mask=has, other=0.0)
    mask = inside[:, None] & is_latent[None, :]
    tl.store(out + column[:, None] * d_sae + latent[None, :], tl.trans(tile), mask=mask)
    if tl.program_id(1) == 0:
        total = tl.load(totals + latent, mask=is_latent, other=0.0)
        for i in range(most):
            total += tl.load(totals + d_sae + first + i, mask=i < n_further, other=0.0)
        tl.store(totals + latent, total, mask=is_latent)


def sums_by_latent(pairs: ByLatent, weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """For each latent the sum of `weights * rows` over its pairs.

    Dense equivalent, `D` being the `[batch, d_sae]` matrix of `weights` at the pairs: `D.T @ rows`.
    No host synchronisation.

    Args:
        pairs: the pairs, by latent.
        weights: `[n_pairs]`, in the order of the support.
        rows: `[batch, d_in]`, float32, bfloat16 or float16, contiguous.

    Returns:
        `[d_sae, d_in]`, float32.
    """
    d_sae, d_in = pairs.begins.numel() - 1, rows.shape[1]
    sums, _ = _in_segments(pairs, weights, rows, with_totals=False)
    if len(sums) > d_sae:
        block = min(triton.next_power_of_2(d_in), 1024)
        with torch.cuda.device_of(rows):
            grid = (d_sae, triton.cdiv(d_in, block))
            _add_segments[grid](sums, pairs.segments, d_sae, d_in, block)
    return sums[:d_sae]


def transposed_sums_by_latent(
    pairs: ByLatent, weights: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The transpose of `sums_by_latent`, and for each latent the sum of `weights` alone.

    Dense equivalent: `rows.T @ D` and `D.sum(0)`. No host synchronisation.

    Returns:
        `[d_in, d_sae]` and `[d_sae]`, float32.
    """
    d_sae, d_in = pairs.begins.numel() - 1, rows.shape[1]
    sums, totals = _in_segments(pairs, weights, rows, with_totals=True)
    out = sums.new_empty(d_in, d_sae)
    with torch.cuda.device_of(rows):
        grid = (triton.cdiv(d_sae, _TILE), triton.cdiv(d_in, _TILE))
        arguments = sums, totals, pairs.segments, out, d_sae, d_in, _TILE
        _add_segments_transposed[grid](*arguments)
    return out, totals[:d_sae]


def _in_segments(
    pairs: ByLatent, weights: torch.Tensor, rows: torch.Tensor, with_totals: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the first segment of each latent, then over further ones, as many as can be."""
    d_sae, d_in = pairs.begins.numel() - 1, rows.shape[1]
    n_programs = d_sae + pairs.order.numel() // _SEGMENT
    sums = torch.empty(n_programs, d_in, dtype=torch.float32, device=rows.device)
    totals = torch.empty(n_programs if with_totals else 0, dtype=torch.float32, device=rows.device)
    block = triton.next_power_of_2(d_in)
    with torch.cuda.device_of(rows):
        _sums_by_latent[(n_programs,)](
            *(*pairs, d_sae, d_in, weights, rows, sums, totals),
            *(with_totals, _SEGMENT, max(1, min(16, _ELEMENTS // block)), block),
            num_warps=warps_of(block, rows) if block <= 4096 else 8,
        )
    return sums, totals
