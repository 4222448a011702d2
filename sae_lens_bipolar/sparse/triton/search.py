"""Searches in rows of pre-activations: the k largest entries, and all beyond their thresholds.

Rows are read as the encoder's product left them, in its dtype, and a bias and a scale are applied
on the way: `entries = u * scale + bias`, in float32. So nothing else passes over the matrix.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# A launch takes plain numbers for `constexpr` parameters, and `num_warps` beside them.

from functools import cache

import torch
import triton
import triton.language as tl

_WIDEST = 1 << 14  # entries that a program of `_top_k` holds in registers
_PLAIN = 1 << 11  # columns up to which they are searched without groups
_GROUPS = (4, 8, 16, 32, 64, 128)  # columns whose maximum is taken first
_BLOCK = 1024  # columns a program of `beyond` looks at together
_MAXIMA_BLOCK = 2048  # columns of a program of `_maxima`


@triton.jit
def _entries(u, bias, scale, row, column, n, inside, BIAS: tl.constexpr, SCALE: tl.constexpr):
    entries = tl.load(u + row * n + column, mask=inside, other=0.0).to(tl.float32)
    if SCALE:
        entries *= tl.load(scale + column, mask=inside, other=0.0)
    if BIAS:
        entries += tl.load(bias + column, mask=inside, other=0.0)
    return entries


@triton.jit
def _maxima(
    u, bias, scale, maxima, n, n_groups,
    BY_VALUE: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = column < n
    entries = _entries(u, bias, scale, row, column, n, inside, BIAS, SCALE)
    ranked = entries if BY_VALUE else tl.abs(entries)
    largest = tl.max(tl.where(inside, ranked, -float("inf")), axis=1)
    tl.store(maxima + row * n_groups + group, largest, mask=group < n_groups)


@triton.jit
def _top_k(
    u, bias, scale, groups, values, indices, n, k,
    BY_VALUE: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, VALUES: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, BLOCK)
    if GROUP:  # the columns of k groups, whose indices rise
        member = slot // GROUP
        column = tl.load(groups + row * k + member, mask=member < k, other=0).to(tl.int32)
        column = column * GROUP + slot % GROUP
        inside = (member < k) & (column < n)
    else:
        column = slot
        inside = column < n
    entries = _entries(u, bias, scale, row, column, n, inside, BIAS, SCALE)
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
    if VALUES:
        tl.store(values + place, entries, mask=kept)
    tl.store(indices + place, column.to(tl.int64), mask=kept)


@cache
def group_of(columns: int, k: int) -> int | None:
    """Columns per group of a search, 0 for none; None: rows are too wide for this k.

    A row's k largest entries lie within the k groups with the largest maxima. So a search looks at
    the maxima first, then at the columns of k groups, and both should be few.
    """
    if columns <= _PLAIN:
        return 0

    def widths(group: int) -> tuple[int, int]:
        n_groups = triton.cdiv(columns, group)
        return triton.next_power_of_2(n_groups), triton.next_power_of_2(k) * group

    # With fewer groups than k every group would be chosen.
    fitting = [g for g in _GROUPS if triton.cdiv(columns, g) >= k and max(widths(g)) <= _WIDEST]
    if fitting:
        return min(fitting, key=lambda group: sum(widths(group)))
    return 0 if columns <= _WIDEST else None


def top_k(
    u: torch.Tensor,
    k: int,
    by_value: bool,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k entries of each row with the largest magnitude, or value, in order of their columns.

    Dense equivalent: `e = u.float() * scale + bias`; `i = e.abs().topk(k).indices`;
    `e.gather(1, i), i`. Of equal candidates those in the first columns are kept. No host
    synchronisation.

    Args:
        u: `[rows, columns]`, contiguous, float32, bfloat16 or float16; `group_of(columns, k)`
            must not be None.
        k: entries per row, `1 <= k <= columns`.
        by_value: rank by `e` instead of `|e|`.
        bias: `[columns]`, float32, or None for 0.
        scale: `[columns]`, float32, or None for 1.

    Returns:
        Values (float32) and column indices (int64), `[rows, k]` each.
    """
    rows, columns = u.shape
    values = torch.empty(rows, k, dtype=torch.float32, device=u.device)
    indices = torch.empty(rows, k, dtype=torch.int64, device=u.device)
    group = group_of(columns, k)
    assert group is not None
    read = u, bias, scale
    flags = by_value, bias is not None, scale is not None
    with torch.cuda.device_of(u):
        if not group:
            _launch(rows, columns, *read, None, values, indices, columns, k, *flags, True, 0)
            return values, indices
        n_groups = triton.cdiv(columns, group)
        maxima = torch.empty(rows, n_groups, dtype=torch.float32, device=u.device)
        chosen = torch.empty_like(indices)
        grid = (rows, triton.cdiv(n_groups, _MAXIMA_BLOCK // group))
        _maxima[grid](*read, maxima, columns, n_groups, *flags, group, _MAXIMA_BLOCK)
        of_maxima = maxima, None, None, None, None, chosen
        _launch(rows, n_groups, *of_maxima, n_groups, k, True, False, False, False, 0)
        width = triton.next_power_of_2(k) * group
        _launch(rows, width, *read, chosen, values, indices, columns, k, *flags, True, group)
    return values, indices


def _launch(rows: int, width: int, *arguments: object) -> None:
    block = triton.next_power_of_2(width)
    _top_k[(rows,)](*arguments, block, num_warps=min(max(block // 1024, 1), 8))


@triton.jit
def _is_beyond(u, bias, upper, lower, row, column, n, TWO_SIDED: tl.constexpr, BIAS: tl.constexpr):
    inside = column < n
    entries = _entries(u, bias, bias, row, column, n, inside, BIAS, False)
    hit = entries > tl.load(upper + column, mask=inside, other=float("inf"))
    if TWO_SIDED:
        hit = hit | (entries < -tl.load(lower + column, mask=inside, other=float("inf")))
    return entries, hit & inside


@triton.jit
def _count_beyond(
    u, bias, upper, lower, counts, n,
    TWO_SIDED: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros([BLOCK], tl.int32)
    for first in range(0, n, BLOCK):
        column = first + tl.arange(0, BLOCK)
        _, hit = _is_beyond(u, bias, upper, lower, row, column, n, TWO_SIDED, BIAS)
        count += hit.to(tl.int32)
    tl.store(counts + row, tl.sum(count).to(tl.int64))


@triton.jit
def _take_beyond(
    u, bias, upper, lower, ends, columns, values, n,
    TWO_SIDED: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(ends + row - 1, mask=row > 0, other=0)
    for first in range(0, n, BLOCK):
        column = first + tl.arange(0, BLOCK)
        entries, hit = _is_beyond(u, bias, upper, lower, row, column, n, TWO_SIDED, BIAS)
        n_hits = tl.sum(hit.to(tl.int32))
        if n_hits > 0:
            to = place + tl.cumsum(hit.to(tl.int32), 0) - 1
            tl.store(columns + to, column.to(tl.int64), mask=hit)
            tl.store(values + to, entries, mask=hit)
            place += n_hits


def beyond(
    u: torch.Tensor,
    upper: torch.Tensor,
    lower: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and value of each entry above `upper` or below `-lower`, by row, then column.

    Dense equivalent: `e = u.float() + bias`; `i = ((e > upper) | (e < -lower)).nonzero(
    as_tuple=True)`; `*i, e[i]`. One host synchronisation per call: memory for what is found cannot
    be had before it is counted.

    Args:
        u: `[rows, columns]`, contiguous, float32, bfloat16 or float16.
        upper: `[columns]`.
        lower: `[columns]`, or None for one side.
        bias: `[columns]`, float32, or None for 0.
    """
    rows, n = u.shape
    thresholds = (upper.contiguous(), (upper if lower is None else lower).contiguous())
    counts = torch.empty(rows, dtype=torch.int64, device=u.device)
    flags = lower is not None, bias is not None
    block = min(triton.next_power_of_2(n), _BLOCK)
    with torch.cuda.device_of(u):
        _count_beyond[(rows,)](u, bias, *thresholds, counts, n, *flags, block)
        ends = counts.cumsum(0)
        n_found = int(ends[-1])
        columns = torch.empty(n_found, dtype=torch.int64, device=u.device)
        values = torch.empty(n_found, dtype=torch.float32, device=u.device)
        _take_beyond[(rows,)](u, bias, *thresholds, ends, columns, values, n, *flags, block)
    return torch.repeat_interleave(counts, output_size=n_found), columns, values
