"""The searches of `selection` in one compiled pass; imported only where numba is installed.

Keys are a float's bits read as an integer that orders as the float does, so that a threshold can be
found by bisection: compilers vectorise a loop that counts keys, unlike the swaps of quickselect.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from numba import njit, prange
from numba.core import config
from numba.np.ufunc.parallel import threading_layer

Integer: TypeAlias = int | np.signedinteger[Any]

# Columns `j, j + n, j + 2n, ...` of a row form a group, so that the largest of each are found by
# vector instructions; this many, if that leaves enough groups.
_GROUPS = (16, 8, 4, 2)
_GROUPS_PER_ENTRY = 3


def top_k(u: torch.Tensor, k: int, by_value: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As `selection.top_k`, for `u` of shape `[rows, columns]`: float32, CPU, contiguous."""
    values = u.new_empty(u.shape[0], k)
    indices = torch.empty(u.shape[0], k, dtype=torch.int64)
    enough = _GROUPS_PER_ENTRY * k
    group = next((g for g in _GROUPS if u.shape[1] >= g * enough), 1)
    arrays = (u.numpy(), values.numpy(), indices.numpy())
    n_threads = min(torch.get_num_threads(), u.shape[0])
    if n_threads == 1:
        _rows(*arrays, by_value, group, 0, u.shape[0])
    else:
        _rows_in_parallel(*arrays, by_value, group, n_threads)
    return values, indices


def beyond(
    u: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `selection.beyond`, for float32 tensors on CPU, contiguous."""
    rows, columns = u.shape
    counts = torch.empty(rows, dtype=torch.int64)
    found = torch.empty(rows, columns, dtype=torch.int32)  # pages that no row fills take no memory
    either = upper if lower is None else lower
    arrays = (u.numpy(), upper.numpy(), either.numpy(), counts.numpy(), found.numpy())
    n_threads = min(torch.get_num_threads(), rows)
    if n_threads == 1:
        _find_beyond(*arrays, lower is not None, 0, rows)
    else:
        _find_beyond_in_parallel(*arrays, lower is not None, n_threads)
    n_found = int(counts.sum())
    indices, values = torch.empty(n_found, dtype=torch.int64), u.new_empty(n_found)
    _collect(u.numpy(), counts.numpy(), found.numpy(), indices.numpy(), values.numpy())
    return torch.repeat_interleave(counts, output_size=n_found), indices, values


def usable() -> bool:
    """Whether these run compiled, and side by side with calls from other Python threads."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return False
    one = np.zeros((2, 1), np.float32)
    n_threads = torch.get_num_threads()
    _rows_in_parallel(one, one.copy(), np.zeros((2, 1), np.int64), False, 1, 2)
    # When numba starts its threads it sets their number, and, with one OpenMP in the process, that
    # of torch's too (numba 0.68, np/ufunc/omppool.cpp, launch_threads).
    torch.set_num_threads(n_threads)
    # "workqueue" aborts the process when a second thread calls.
    return threading_layer() != "workqueue"


@njit(cache=True)
def _key(u: float, by_value: bool) -> Integer:
    """An integer that orders as `|u|`, or as `u`."""
    bits = np.float32(u).view(np.int32)
    if by_value:
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits & 0x7FFFFFFF


@njit(cache=True)
def _maxima(u: np.ndarray, by_value: bool, group: int, maxima: np.ndarray) -> None:
    """The largest entry, or magnitude, of each group."""
    n = maxima.shape[0]
    maxima[:] = u[:n] if by_value else np.abs(u[:n])
    for i in range(1, group):
        entries = u[i * n : (i + 1) * n]
        for j in range(n):
            v = entries[j] if by_value else abs(entries[j])
            maxima[j] = v if v > maxima[j] else maxima[j]


@njit(cache=True)
def _count(keys: np.ndarray, n: Integer, threshold: Integer) -> int:
    """How many of the first n keys are at least `threshold`."""
    as_key = np.int32(threshold)
    count = 0
    for j in range(n):
        count += keys[j] >= as_key
    return count


@njit(cache=True)
def _threshold(keys: np.ndarray, n: Integer, k: int) -> Integer:
    """A threshold that k of the first n keys reach, or with ties at it a few more."""
    low, high = np.int64(keys[0]), np.int64(keys[0] + 1)
    for j in range(n):
        low = min(low, keys[j])
        high = max(high, keys[j] + 1)
    if n == k:
        return low
    while high - low > 1:
        middle = (low + high) >> 1
        count = _count(keys, n, middle)
        if count == k:
            return middle
        if count > k:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _rows(
    u: np.ndarray,
    values: np.ndarray,
    indices: np.ndarray,
    by_value: bool,
    group: int,
    first: int,
    last: int,
) -> None:
    """The search in rows `first` to `last - 1`."""
    columns = u.shape[1]
    k = values.shape[1]
    n = columns // group
    maxima = np.empty(n, np.float32)
    keys = np.empty(columns, np.int32)
    found = np.empty(columns, np.int32)
    for row in range(first, last):
        entries = u[row]
        _maxima(entries, by_value, group, maxima)
        for j in range(n):
            keys[j] = _key(maxima[j], by_value)
        # k groups have a maximum this large, so the k largest entries are this large too.
        threshold = _threshold(keys, n, k)
        count = 0
        for j in range(n):
            if _key(maxima[j], by_value) >= threshold:
                for i in range(j, group * n, n):
                    key = _key(entries[i], by_value)
                    keys[count] = key
                    found[count] = i
                    count += key >= threshold
        for i in range(group * n, columns):  # columns that fill no group
            key = _key(entries[i], by_value)
            keys[count] = key
            found[count] = i
            count += key >= threshold
        threshold = _threshold(keys, count, k)
        ties = k - _count(keys, count, threshold + 1)
        kept = 0
        for j in range(count):
            if keys[j] > threshold or (keys[j] == threshold and ties > 0):
                ties -= keys[j] == threshold
                indices[row, kept] = found[j]
                values[row, kept] = entries[found[j]]
                kept += 1


@njit(cache=True, parallel=True)
def _rows_in_parallel(
    u: np.ndarray,
    values: np.ndarray,
    indices: np.ndarray,
    by_value: bool,
    group: int,
    n_parts: int,
) -> None:
    """`_rows` over all rows, in parts that run at the same time."""
    rows = u.shape[0]
    for part in prange(n_parts):
        first, last = part * rows // n_parts, (part + 1) * rows // n_parts
        _rows(u, values, indices, by_value, group, first, last)


@njit(cache=True)
def _largest_excess(
    u: np.ndarray, upper: np.ndarray, lower: np.ndarray, two_sided: bool, excess: np.ndarray
) -> None:
    """Per group, how far its furthest entry lies beyond its threshold, or -1."""
    n = excess.shape[0]
    excess[:] = np.float32(-1)
    for group in range(_GROUPS[0]):
        columns = slice(group * n, (group + 1) * n)
        entries, above, below = u[columns], upper[columns], lower[columns]
        if two_sided:
            for j in range(n):
                over, under = entries[j] - above[j], -below[j] - entries[j]
                largest = over if over > under else under
                excess[j] = largest if largest > excess[j] else excess[j]
        else:
            for j in range(n):
                over = entries[j] - above[j]
                excess[j] = over if over > excess[j] else excess[j]


@njit(cache=True, nogil=True)
def _find_beyond(
    u: np.ndarray,
    upper: np.ndarray,
    lower: np.ndarray,
    counts: np.ndarray,
    found: np.ndarray,
    two_sided: bool,
    first: int,
    last: int,
) -> None:
    """In rows `first` to `last - 1`: the columns beyond their thresholds and their number."""
    columns = u.shape[1]
    n = columns // _GROUPS[0]
    excess = np.empty(n, np.float32)
    for row in range(first, last):
        entries = u[row]
        _largest_excess(entries, upper, lower, two_sided, excess)
        count = 0
        for j in range(n):
            if excess[j] >= 0:
                for i in range(j, _GROUPS[0] * n, n):
                    found[row, count] = i
                    count += entries[i] > upper[i] or (two_sided and entries[i] < -lower[i])
        for i in range(_GROUPS[0] * n, columns):  # columns that fill no group
            found[row, count] = i
            count += entries[i] > upper[i] or (two_sided and entries[i] < -lower[i])
        counts[row] = count


@njit(cache=True, parallel=True)
def _find_beyond_in_parallel(
    u: np.ndarray,
    upper: np.ndarray,
    lower: np.ndarray,
    counts: np.ndarray,
    found: np.ndarray,
    two_sided: bool,
    n_parts: int,
) -> None:
    """`_find_beyond` over all rows, in parts that run at the same time."""
    rows = u.shape[0]
    for part in prange(n_parts):
        first, last = part * rows // n_parts, (part + 1) * rows // n_parts
        _find_beyond(u, upper, lower, counts, found, two_sided, first, last)


@njit(cache=True)
def _collect(
    u: np.ndarray, counts: np.ndarray, found: np.ndarray, indices: np.ndarray, values: np.ndarray
) -> None:
    """What was found in each row, one row after the other."""
    n = 0
    for row in range(u.shape[0]):
        for j in range(counts[row]):
            indices[n] = found[row, j]
            values[n] = u[row, found[row, j]]
            n += 1
