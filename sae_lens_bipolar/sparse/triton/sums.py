"""Sums over the pairs of each sample: the sparse decoder, and dot products at the pairs."""

# pyright: reportArgumentType=false, reportCallIssue=false
# A launch takes plain numbers for `constexpr` parameters, and `num_warps` beside them.

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # columns of a program
_PAIRS = 4  # rows it reads together
_DOT_BLOCK = 512  # columns that a program of `_dots` multiplies together
_DOT_BYTES = 16  # of each column it adds up together: 8 pairs in bfloat16, 4 in float32
_DOT_SPLIT = 8  # programs that share the pairs of one sample


def warps_of(block: int, read: torch.Tensor) -> int:
    """Warps of which each thread reads 16 bytes of a row of `block` entries of `read`'s dtype.

    With more, several warps would share a column, and every sum over rows would go through shared
    memory: up to ten times as slow.
    """
    return min(max(block * read.element_size() // (32 * 16), 1), 4)


@triton.jit
def _weighted_sums(out, index, offsets, weights, rows, d, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < d
    last = tl.load(offsets + bag + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(offsets + bag), last, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        here = pair < last
        row = tl.load(index + pair, mask=here, other=0).to(tl.int64)
        weight = tl.load(weights + pair, mask=here, other=0.0).to(tl.float32)
        mask = here[:, None] & inside[None, :]
        read = tl.load(rows + row[:, None] * d + column[None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, None] * read.to(tl.float32), axis=0)
    tl.store(out + bag * d + column, total, mask=inside)


def weighted_sums(
    index: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """For each bag `offsets[i]:offsets[i + 1]`, the sum of `weights * rows[index]` over it.

    Dense equivalent: `D @ rows`, where row i of `D` has the bag's weights in the columns `index`.
    No host synchronisation.

    Args:
        index: `[n_pairs]`, integers.
        offsets: `[n_bags + 1]`, integers.
        weights: `[n_pairs]`.
        rows: `[n_rows, d_in]`, float32, bfloat16 or float16, contiguous.

    Returns:
        `[n_bags, d_in]`, float32.
    """
    n_bags, d_in = offsets.numel() - 1, rows.shape[1]
    out = torch.empty(n_bags, d_in, dtype=torch.float32, device=rows.device)
    block = min(triton.next_power_of_2(d_in), _BLOCK)
    grid = (n_bags, triton.cdiv(d_in, block))
    warps = warps_of(block, rows)
    with torch.cuda.device_of(rows):
        arguments = out, index, offsets, weights, rows, d_in, _PAIRS, block
        _weighted_sums[grid](*arguments, num_warps=warps)
    return out


@triton.jit
def _dots(
    out, index, offsets, left, right, d, SPLIT: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64)
    last = tl.load(offsets + bag + 1)
    begin = tl.load(offsets + bag) + tl.program_id(1) * PAIRS
    for first in range(begin, last, PAIRS * SPLIT):
        pair = first + tl.arange(0, PAIRS)
        here = pair < last
        row = tl.load(index + pair, mask=here, other=0).to(tl.int64)
        total = tl.zeros([PAIRS, BLOCK], tl.float32)
        for begin_of_block in range(0, d, BLOCK):
            column = begin_of_block + tl.arange(0, BLOCK)
            inside = column < d
            mask = here[:, None] & inside[None, :]
            own = tl.load(left + bag * d + column, mask=inside, other=0.0).to(tl.float32)
            other = tl.load(right + row[:, None] * d + column[None, :], mask=mask, other=0.0)
            total += own[None, :] * other.to(tl.float32)
        tl.store(out + pair, tl.sum(total, axis=1), mask=here)


def dots(
    index: torch.Tensor, offsets: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """For each pair of bag i, `left[i] . right[index]`.

    Dense equivalent: `(left @ right.T)` at the pairs. No host synchronisation.

    Args:
        index: `[n_pairs]`, integers.
        offsets: `[n_bags + 1]`, integers.
        left: `[n_bags, d_in]`, contiguous.
        right: `[n_rows, d_in]`, contiguous.

    Returns:
        `[n_pairs]`, float32.
    """
    n_bags, d_in = left.shape
    out = torch.empty(index.numel(), dtype=torch.float32, device=left.device)
    block = min(triton.next_power_of_2(d_in), _DOT_BLOCK)
    with torch.cuda.device_of(left):
        pairs = _DOT_BYTES // right.element_size()
        arguments = out, index, offsets, left, right, d_in, _DOT_SPLIT, pairs, block
        _dots[(n_bags, _DOT_SPLIT)](*arguments, num_warps=1)
    return out
