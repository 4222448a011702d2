"""Sums of rows, weighted, over the pairs of each sample: the sparse decoder."""

# pyright: reportArgumentType=false, reportCallIssue=false
# A launch takes plain numbers for `constexpr` parameters, and `num_warps` beside them.

import torch
import triton
import triton.language as tl

_BLOCK = 512  # columns of a program
_PAIRS = 8  # rows it reads together


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
    with torch.cuda.device_of(rows):
        _weighted_sums[grid](out, index, offsets, weights, rows, d_in, _PAIRS, block)
    return out
