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
import torch.nn.functional as F
import triton
import triton.language as tl

from sae_lens_bipolar.sparse.triton.sums import warps_of

_SEGMENT = 256  # pairs of one latent that one program adds up
_ELEMENTS = 4096  # that a program reads together
_TILE = 64  # rows and columns that a program transposes


class ByLatent(NamedTuple):
    """The pairs in order of their latent."""

    order: torch.Tensor  # `[n_pairs]`, the permutation
    samples: torch.Tensor  # `[n_pairs]`, the sample of each
    begins: torch.Tensor  # `[d_sae + 1]`, where each latent's begin, then n_pairs


class Segments(NamedTuple):
    """Which latents have more pairs than one program adds up."""

    begins: torch.Tensor  # `[d_sae + 1]`, where each latent's further segments begin
    owners: torch.Tensor  # `[n_further]`, the latent of each further segment


@triton.jit
def _sums_by_latent(
    order, samples, begins, segments, owners, d_sae, d, weights, rows, sums, totals,
    TOTALS: tl.constexpr, SEGMENT: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    # Programs from d_sae on take a further segment of a hot latent; those left over find it empty.
    is_further = program >= d_sae
    owner = tl.load(owners + program - d_sae, mask=is_further, other=0).to(tl.int64)
    latent = tl.where(is_further, owner, program)
    behind_first = program - d_sae - tl.load(segments + latent) + 1
    segment = tl.where(is_further, behind_first, 0)
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
def _transpose(matrix, out, n_rows, n_columns, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    tile = tl.load(matrix + row[:, None] * n_columns + column[None, :], mask=mask)
    mask = (column < n_columns)[:, None] & (row < n_rows)[None, :]
    tl.store(out + column[:, None] * n_rows + row[None, :], tl.trans(tile), mask=mask)


def transposed(matrix: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of the transpose. Dense equivalent: `matrix.t().contiguous()`.

    Args:
        matrix: `[rows, columns]`, contiguous.
    """
    rows, columns = matrix.shape
    out = matrix.new_empty(columns, rows)
    with torch.cuda.device_of(matrix):
        grid = (triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE))
        _transpose[grid](matrix, out, rows, columns, _TILE)
    return out


def segments_of(pairs: ByLatent) -> Segments:
    """The further segments of each latent, without asking the device how many there are."""
    d_sae, n_pairs = pairs.begins.numel() - 1, pairs.order.numel()
    n_further = n_pairs // _SEGMENT  # at most so many
    further = (pairs.begins.diff() - 1).clamp(min=0) // _SEGMENT
    begins = F.pad(further.cumsum(0), (1, 0))
    each = torch.arange(n_further, device=begins.device)
    owners = torch.searchsorted(begins[1:], each, right=True)
    return Segments(begins, owners.clamp_(max=d_sae - 1))


def sums_by_latent(
    pairs: ByLatent,
    segments: Segments,
    weights: torch.Tensor,
    rows: torch.Tensor,
    with_totals: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """For each latent the sum of `weights * rows` over its pairs, and that of `weights` alone.

    Dense equivalent, `D` being the `[batch, d_sae]` matrix of `weights` at the pairs: `D.T @ rows`
    and `D.sum(0)`. No host synchronisation.

    Args:
        pairs: the pairs, by latent.
        segments: `segments_of(pairs)`.
        weights: `[n_pairs]`, in the order of the support.
        rows: `[batch, d_in]`, float32, bfloat16 or float16.
        with_totals: whether the second sum is wanted; it is None otherwise.

    Returns:
        `[d_sae, d_in]` and `[d_sae]`, float32.
    """
    d_in, device = rows.shape[1], rows.device
    d_sae, n_further = pairs.begins.numel() - 1, segments.owners.numel()
    sums = torch.empty(d_sae + n_further, d_in, dtype=torch.float32, device=device)
    totals = torch.empty(d_sae + n_further, dtype=torch.float32, device=device)
    block = triton.next_power_of_2(d_in)
    with torch.cuda.device_of(rows):
        _sums_by_latent[(d_sae + n_further,)](
            *(*pairs, *segments, d_sae, d_in, weights, rows, sums, totals),
            *(with_totals, _SEGMENT, max(1, min(16, _ELEMENTS // block)), block),
            num_warps=warps_of(block, rows) if block <= 4096 else 8,
        )
        for added, d in ((sums, d_in), (totals, 1))[: 1 + with_totals]:
            if n_further:
                block = min(triton.next_power_of_2(d), 1024)
                _add_segments[(d_sae, triton.cdiv(d, block))](
                    added, segments.begins, d_sae, d, block
                )
    return sums[:d_sae], totals[:d_sae] if with_totals else None
