"""Searches in rows of pre-activations: the k largest entries, and all beyond their thresholds."""

# pyright: reportArgumentType=false, reportCallIssue=false
# A launch takes plain numbers for `constexpr` parameters, and `num_warps` beside them.

import torch
import triton
import triton.language as tl

WIDEST_ROW = 1 << 15  # a program of `top_k` holds a row in registers
_BLOCK = 1024  # columns a program of `beyond` looks at together


@triton.jit
def _top_k(u, values, indices, n, k, BY_VALUE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < n
    entries = tl.load(u + row * n + column, mask=inside, other=0.0)
    # The bits of a float, read as an integer that orders as the float, or its magnitude, does.
    bits = entries.to(tl.uint32, bitcast=True)
    if BY_VALUE:
        key = tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits ^ 0x80000000).to(tl.uint32)
    else:
        key = (bits & 0x7FFFFFFF).to(tl.uint32)
    key = tl.where(inside, key, 0).to(tl.uint32)
    # The largest threshold that k entries reach, bit by bit, or the first that k reach exactly.
    threshold = tl.full([], 0, tl.uint32)
    reach = tl.sum(inside.to(tl.int32))
    bit = tl.full([], 1 << 31, tl.uint32)
    while (bit > 0) & (reach != k):
        higher = threshold | bit
        count = tl.sum((key >= higher).to(tl.int32))
        threshold = tl.where(count >= k, higher, threshold)
        reach = tl.where(count >= k, count, reach)
        bit = bit >> 1
    above = key > threshold
    tie = inside & (key == threshold)
    n_ties = k - tl.sum(above.to(tl.int32))
    kept = above | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= n_ties))
    place = row * k + tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(values + place, entries, mask=kept)
    tl.store(indices + place, column.to(tl.int64), mask=kept)


def top_k(u: torch.Tensor, k: int, by_value: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The k entries of each row with the largest magnitude, or value, in order of their columns.

    Dense equivalent: `i = u.abs().topk(k).indices; u.gather(1, i), i`. Of equal candidates those in
    the first columns are kept. No host synchronisation.

    Args:
        u: `[rows, columns]`, float32, contiguous, of at most `WIDEST_ROW` columns.
        k: entries per row, `1 <= k <= columns`.
        by_value: rank by `u` instead of `|u|`.

    Returns:
        Values and column indices (int64), `[rows, k]` each.
    """
    rows, columns = u.shape
    values = u.new_empty(rows, k)
    indices = torch.empty(rows, k, dtype=torch.int64, device=u.device)
    block = triton.next_power_of_2(columns)
    n_warps = min(max(block // 1024, 1), 16)
    with torch.cuda.device_of(u):
        _top_k[(rows,)](u, values, indices, columns, k, by_value, block, num_warps=n_warps)
    return values, indices


@triton.jit
def _is_beyond(u, upper, lower, row, column, n, TWO_SIDED: tl.constexpr):
    inside = column < n
    entries = tl.load(u + row * n + column, mask=inside, other=0.0)
    hit = entries > tl.load(upper + column, mask=inside, other=float("inf"))
    if TWO_SIDED:
        hit = hit | (entries < -tl.load(lower + column, mask=inside, other=float("inf")))
    return entries, hit & inside


@triton.jit
def _count_beyond(u, upper, lower, counts, n, TWO_SIDED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = tl.full([], 0, tl.int32)
    for first in range(0, n, BLOCK):
        column = first + tl.arange(0, BLOCK)
        _, hit = _is_beyond(u, upper, lower, row, column, n, TWO_SIDED)
        count += tl.sum(hit.to(tl.int32))
    tl.store(counts + row, count.to(tl.int64))


@triton.jit
def _take_beyond(
    u, upper, lower, ends, columns, values, n, TWO_SIDED: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(ends + row - 1, mask=row > 0, other=0)
    for first in range(0, n, BLOCK):
        column = first + tl.arange(0, BLOCK)
        entries, hit = _is_beyond(u, upper, lower, row, column, n, TWO_SIDED)
        to = place + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(columns + to, column.to(tl.int64), mask=hit)
        tl.store(values + to, entries, mask=hit)
        place += tl.sum(hit.to(tl.int32))


def beyond(
    u: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and value of each entry above `upper` or below `-lower`, by row, then column.

    Dense equivalent: `i = ((u > upper) | (u < -lower)).nonzero(as_tuple=True)`; `*i, u[i]`. One
    host synchronisation per call: memory for what is found cannot be had before it is counted.

    Args:
        u: `[rows, columns]`, float32, contiguous.
        upper: `[columns]`.
        lower: `[columns]`, or None for one side.
    """
    rows, n = u.shape
    thresholds = (upper.contiguous(), (upper if lower is None else lower).contiguous())
    counts = torch.empty(rows, dtype=torch.int64, device=u.device)
    both = lower is not None
    block = min(triton.next_power_of_2(n), _BLOCK)
    with torch.cuda.device_of(u):
        _count_beyond[(rows,)](u, *thresholds, counts, n, both, block)
        ends = counts.cumsum(0)
        n_found = int(ends[-1])
        columns = torch.empty(n_found, dtype=torch.int64, device=u.device)
        values = u.new_empty(n_found)
        _take_beyond[(rows,)](u, *thresholds, ends, columns, values, n, both, block)
    return torch.repeat_interleave(counts, output_size=n_found), columns, values
