"""Numbers as the page reads them: unsigned LEB128 integers in base64, one record per latent.

A record is a row of integers; rows of a table are packed at once, with a mask for what a row does
not have. `records.py` says what the integers mean, and `static/records.js` reads them.
"""

import base64

import numpy as np

_MOST = 1 << 35  # what five bytes hold


def pack_rows(values: np.ndarray, present: np.ndarray) -> list[str]:
    """One base64 text per row of integers `[rows, columns]`, of the entries that are `present`."""
    flat = values[present].astype(np.int64)
    if len(flat) and (flat.min() < 0 or flat.max() >= _MOST):
        raise AssertionError(f"{flat.min()} to {flat.max()} cannot be packed")
    size = np.ones(len(flat), dtype=np.int64)
    for bits in (7, 14, 21, 28):
        size += flat >= 1 << bits
    ends = np.concatenate([[0], size.cumsum()])
    packed = np.zeros(ends[-1], dtype=np.uint8)
    for byte in range(5):
        here = size > byte
        part = (flat[here] >> (7 * byte)) & 0x7F
        packed[ends[:-1][here] + byte] = part | np.where(size[here] > byte + 1, 0x80, 0)
    rows = ends[np.concatenate([[0], present.sum(1).cumsum()])]
    content = packed.tobytes()
    return [
        base64.b64encode(content[start:stop]).decode("ascii")
        for start, stop in zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True)
    ]


def pack_column(values: np.ndarray) -> str:
    """One base64 text for a column of integers."""
    row = np.asarray(values, dtype=np.int64).reshape(1, -1)
    return pack_rows(row, np.ones_like(row, dtype=bool))[0]


def unpack(text: str) -> list[int]:
    """The integers of a packed text."""
    values, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value, shift = 0, 0
    return values


def zigzag(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ..."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unzigzag(value: int) -> int:
    """What `zigzag` was given."""
    return -(value + 1) // 2 if value % 2 else value // 2


def float_bits(values: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers, as integers."""
    return np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.int64)


def bits_float(value: int) -> float:
    """What `float_bits` was given."""
    return float(np.array([value], dtype="<u4").view("<f4")[0])


def beside(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tables of values and of what is present, put side by side."""
    rows = len(parts[0][0])
    values, present = (
        np.concatenate([part[i].reshape(rows, -1) for part in parts], axis=1) for i in (0, 1)
    )
    return values, present


def always(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns that every row has."""
    rows = len(columns[0])
    values = np.concatenate(
        [np.asarray(column, dtype=np.int64).reshape(rows, -1) for column in columns], axis=1
    )
    return values, np.ones_like(values, dtype=bool)


def shares(values: np.ndarray, whole: np.ndarray | float, steps: int) -> np.ndarray:
    """`values / whole` in whole steps, rounded; 0 where `whole` is 0."""
    whole = np.broadcast_to(np.asarray(whole, dtype=np.float64), np.shape(values))
    found = np.divide(values, whole, out=np.zeros(np.shape(values)), where=whole != 0)
    return np.rint(found * steps).astype(np.int64)
