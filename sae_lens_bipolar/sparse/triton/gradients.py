"""Gradients of encoder and decoder in one pass over the pairs of each latent.

With `g = dL/dxhat` and `v` the values of the pairs of latent i, `xhat_b = sum_i v_bi W_dec_i`:

    dv_bi = g_b . W_dec_i         dW_dec_i = sum_b v_bi g_b
    dW_enc_i = sum_b du_bi x_b    db_enc_i = sum_b du_bi

A program takes one latent and adds up its pairs in registers, so that each gradient is written
once, zeros included, and nothing is added atomically: two runs agree to the bit. A latent with more
than `_SEGMENT` pairs, up to the whole batch, is split: further programs take its further segments
and write their sums to rows behind the gradient's own, and a second kernel adds those to it.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportPossiblyUnboundVariable=false
# A launch takes plain numbers for `constexpr` parameters, and `num_warps` beside them.

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

_SEGMENT = 256  # pairs of one latent that one program adds up
_ELEMENTS = 4096  # that a program reads together


class ByLatent(NamedTuple):
    """The pairs in order of their latent."""

    order: torch.Tensor  # `[n_pairs]`, the permutation
    samples: torch.Tensor  # `[n_pairs]`, the sample of each
    begins: torch.Tensor  # `[d_sae + 1]`, where each latent's begin, then n_pairs


class Gradients(NamedTuple):
    """What was asked for; the rest is None."""

    dvalues: torch.Tensor | None  # `[n_pairs]`
    dW_dec: torch.Tensor | None  # `[d_sae, d_in]`
    dW_enc: torch.Tensor | None  # `[d_in, d_sae]`
    db_enc: torch.Tensor | None  # `[d_sae]`


@triton.jit
def _of_segments(
    # the segments
    order, samples, begins, segments, owners, d_sae, n_x, d,
    # read
    values, slope, du_of_pair, g, W_dec, x,
    # written
    dvalues, dW_dec, dW_enc, db,
    DECODES: tl.constexpr, ENCODES: tl.constexpr, STORES: tl.constexpr, SLOPES: tl.constexpr,
    SEGMENT: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    # Programs from d_sae on take a further segment of a hot latent; those left over find it empty.
    is_further = row >= d_sae
    owner = tl.load(owners + row - d_sae, mask=is_further, other=0).to(tl.int64)
    latent = tl.where(is_further, owner, row)
    behind_first = row - d_sae - tl.load(segments + latent) + 1
    segment = tl.where(is_further, behind_first, 0)
    start = tl.load(begins + latent) + segment * SEGMENT
    end = tl.minimum(start + SEGMENT, tl.load(begins + latent + 1))
    column = tl.arange(0, BLOCK)
    inside = column < d
    sum_dec = tl.zeros([BLOCK], tl.float32)
    sum_enc = tl.zeros([BLOCK], tl.float32)
    sum_b = tl.full([], 0.0, tl.float32)
    if DECODES:
        w = tl.load(W_dec + latent * d + column, mask=inside, other=0.0).to(tl.float32)
    for first in range(start, end, PAIRS):
        place = first + tl.arange(0, PAIRS)
        here = place < end
        mask = here[:, None] & inside[None, :]
        pair = tl.load(order + place, mask=here, other=0).to(tl.int64)
        sample = tl.load(samples + place, mask=here, other=0).to(tl.int64)
        if DECODES:
            value = tl.load(values + pair, mask=here, other=0.0)
            gs = tl.load(g + sample[:, None] * d + column[None, :], mask=mask, other=0.0)
            gs = gs.to(tl.float32)
            sum_dec += tl.sum(value[:, None] * gs, axis=0)
            du = tl.sum(gs * w[None, :], axis=1)
            if STORES:
                tl.store(dvalues + pair, du, mask=here)
            if SLOPES:
                du *= tl.load(slope + pair, mask=here, other=0.0)
        else:
            du = tl.load(du_of_pair + pair, mask=here, other=0.0)
        if ENCODES:
            xs = tl.load(x + (sample % n_x)[:, None] * d + column[None, :], mask=mask, other=0.0)
            sum_enc += tl.sum(du[:, None] * xs.to(tl.float32), axis=0)
            sum_b += tl.sum(du)
    if DECODES:
        tl.store(dW_dec + row * d + column, sum_dec, mask=inside)
    if ENCODES:
        tl.store(dW_enc + row * d + column, sum_enc, mask=inside)
        tl.store(db + row, sum_b)


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


def gradients(
    pairs: ByLatent,
    *,
    values: torch.Tensor | None = None,
    g: torch.Tensor | None = None,
    W_dec: torch.Tensor | None = None,
    slope: torch.Tensor | None = None,
    du: torch.Tensor | None = None,
    x: torch.Tensor | None = None,
    stores: bool = False,
) -> Gradients:
    """Gradients of the decoder (with `values`, `g`, `W_dec`), of the encoder (`du`, `x`), or both.

    Dense equivalent, `D(t)` being the `[batch, d_sae]` matrix of `t` at the pairs: `dv = g @
    W_dec.T` at the pairs, `dW_dec = D(values).T @ g`, `dW_enc = x.T @ D(du)`, `db_enc =
    D(du).sum(0)`. No host synchronisation.

    Args:
        pairs: the pairs, by latent.
        values: `[n_pairs]`, what the decoder weighs its rows with.
        g: `[batch, d_in]`, the gradient of the reconstruction.
        W_dec: `[d_sae, d_in]`.
        slope: `[n_pairs]`, the derivative of `values` by `u`; None: 1. For both at once, where
            `du = dv * slope`.
        du: `[n_pairs]`, the gradient of `u`, where the decoder is not asked for.
        x: `[n, d_in]`, the encoder's input; sample b reads row `b % n`.
        stores: whether `dv` is wanted.
    """
    d_sae, n_pairs = pairs.begins.numel() - 1, pairs.order.numel()
    read = x if W_dec is None else W_dec
    assert read is not None
    d_in, device = read.shape[1], read.device
    n_further = n_pairs // _SEGMENT  # at most so many segments behind the first of each latent
    further = (pairs.begins.diff() - 1).clamp(min=0) // _SEGMENT
    segments = F.pad(further.cumsum(0), (1, 0))
    owners = torch.searchsorted(segments[1:], torch.arange(n_further, device=device), right=True)
    owners.clamp_(max=d_sae - 1)

    def empty(wanted: bool, *shape: int) -> torch.Tensor | None:
        return torch.empty(shape, dtype=torch.float32, device=device) if wanted else None

    decodes, encodes = W_dec is not None, x is not None
    dvalues = empty(stores, n_pairs)
    dW_dec = empty(decodes, d_sae + n_further, d_in)
    dW_enc = empty(encodes, d_sae + n_further, d_in)
    db = empty(encodes, d_sae + n_further)
    block = triton.next_power_of_2(d_in)
    with torch.cuda.device_of(read):
        _of_segments[(d_sae + n_further,)](
            *(*pairs, segments, owners, d_sae, 1 if x is None else x.shape[0], d_in),
            *(values, slope, du, g, W_dec, x),
            *(dvalues, dW_dec, dW_enc, db),
            *(decodes, encodes, stores, slope is not None),
            *(_SEGMENT, max(1, min(16, _ELEMENTS // block)), block),
            num_warps=4 if block <= 1024 else 8 if block <= 4096 else 16,
        )
        for sums, d in ((dW_dec, d_in), (dW_enc, d_in), (db, 1)):
            if sums is not None and n_further:
                block = min(triton.next_power_of_2(d), 1024)
                _add_segments[(d_sae, triton.cdiv(d, block))](sums, segments, d_sae, d, block)
    dW_dec, dW_enc, db = (None if t is None else t[:d_sae] for t in (dW_dec, dW_enc, db))
    return Gradients(dvalues, dW_dec, None if dW_enc is None else dW_enc.t().contiguous(), db)
