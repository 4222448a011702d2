"""Exact selection in rows: the k largest entries, and the true entries of a mask.

Both first look at maxima over groups of columns, so that most columns are read once only.
"""

from functools import cache
from types import ModuleType
from typing import Literal

import torch

Ranking = Literal["magnitude", "value"]

# Columns of a group: the columns `j, j + n, j + 2n, j + 3n` of a row of `4n`, so that maxima are
# taken over contiguous runs. The finest groups are larger where a coarser level follows.
_GROUP = 4
_FINEST_GROUP = 8
# A level of groups pays off where it leaves this many groups for each entry wanted.
_GROUPS_PER_ENTRY = 3
# Entries from which compiled code is worth its compilation, once per machine.
_COMPILED_FROM = 1 << 16


def top_k(u: torch.Tensor, k: int, ranking: Ranking) -> tuple[torch.Tensor, torch.Tensor]:
    """The k entries of each row with the largest magnitude (or value), in no fixed order.

    Dense equivalent: `i = u.abs().topk(k).indices; u.gather(1, i), i`. Which of two equal
    candidates is kept is not defined. On CPU compiled code does it where numba is installed.

    A row's k largest entries lie within the k groups with the largest maxima: an entry of any
    other group is at most that group's maximum, hence no larger than k others. So the search
    descends from coarse groups to fine ones.

    Args:
        u: `[rows, columns]`.
        k: entries per row, `1 <= k <= columns`.
        ranking: "magnitude" for the largest `|u|`, "value" for the largest `u`.

    Returns:
        Values and column indices, `[rows, k]` each.
    """
    if _suits_compiled_code(u) and (kernels := _kernels()):
        return kernels.top_k(u, k, by_value=ranking == "value")  # type: ignore[no-any-return]
    levels, sizes = [u], []
    enough = _GROUPS_PER_ENTRY * k
    group = _FINEST_GROUP if u.shape[1] >= _FINEST_GROUP * _GROUP * enough else _GROUP
    while levels[-1].shape[1] >= group * enough:
        n = levels[-1].shape[1] // group
        groups = levels[-1][:, : group * n].unflatten(1, (group, n))
        maxima = groups.amax(1)
        if len(levels) == 1 and ranking == "magnitude":
            maxima = torch.maximum(maxima, groups.amin(1).neg_())
        levels.append(maxima)
        sizes.append(group)
        group = _GROUP
    coarsest = levels.pop()
    n = coarsest.shape[1]
    ranked = _rank(coarsest, ranking) if coarsest is u else coarsest
    indices = ranked.topk(k, sorted=False).indices
    values = coarsest.gather(1, indices)
    while levels:
        level, group = levels.pop(), sizes.pop()
        members = torch.arange(0, group * n, n, device=u.device)
        indices = (indices.unsqueeze(1) + members.unsqueeze(1)).flatten(1)
        if group * n < level.shape[1]:  # columns that fill no group
            rest = torch.arange(group * n, level.shape[1], device=u.device)
            indices = torch.cat([indices, rest.expand(u.shape[0], -1)], dim=1)
        n = level.shape[1]
        candidates = level.gather(1, indices)
        ranked = _rank(candidates, ranking) if level is u else candidates
        best = ranked.topk(k, sorted=False).indices
        indices, values = indices.gather(1, best), candidates.gather(1, best)
    return values, indices


def beyond(
    u: torch.Tensor,
    upper: torch.Tensor,
    lower: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and value of each entry above `upper` or below `-lower`, in order of rows.

    Dense equivalent: `i = ((u > upper) | (u < -lower)).nonzero(as_tuple=True)`; `*i, u[i]`. The
    order within a row is not defined. On CPU compiled code does it where numba is installed.

    Args:
        u: `[rows, columns]`.
        upper: `[columns]`.
        lower: `[columns]`, or None for one side.
    """
    if _suits_compiled_code(u) and upper.dtype == u.dtype and (kernels := _kernels()):
        return kernels.beyond(u, upper, lower)  # type: ignore[no-any-return]
    mask = u > upper
    if lower is not None:
        mask |= u < -lower
    rows, columns = where_true(mask)
    return rows, columns, u[rows, columns]


def where_true(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each true entry, in order of rows, then columns.

    Dense equivalent: `mask.nonzero(as_tuple=True)`. Eight columns are read as one word, so a
    sparse mask is searched about eight times as fast.

    Args:
        mask: bool, `[rows, columns]`, contiguous.
    """
    if mask.shape[1] % 8:
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    rows, words = mask.view(torch.int64).nonzero(as_tuple=True)
    eights = mask.view(mask.shape[0], -1, 8)[rows, words]
    hit, byte = eights.nonzero(as_tuple=True)
    return rows[hit], words[hit] * 8 + byte


def _suits_compiled_code(u: torch.Tensor) -> bool:
    return (
        u.device.type == "cpu"
        and u.dtype == torch.float32
        and u.is_contiguous()
        and not u.requires_grad
        and u.numel() >= _COMPILED_FROM
    )


@cache
def _kernels() -> ModuleType | None:
    """The compiled search, or None if it cannot be loaded."""
    try:
        from sae_lens_bipolar.sparse import selection_numba as selection_kernels
    except (ImportError, RuntimeError):  # no numba, one for another numpy, nowhere to cache
        return None
    return selection_kernels if selection_kernels.usable() else None


def _rank(u: torch.Tensor, ranking: Ranking) -> torch.Tensor:
    return u.abs() if ranking == "magnitude" else u
