"""Text as tokens, split into training and held-out by document.

A document lies wholly on one side, which its own content decides. `documents` reads the text; its
functions can be imported from here too. Only as many tokens are made as are asked for.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.inputs.documents import Document, load_documents, texts_of
from sae_lens_bipolar.inputs.paragraphs import parts_of
from sae_lens_bipolar.inputs.parts import join_parts, joined

__all__ = ["Document", "TokenSplit", "load_documents", "split_tokens", "texts_of"]

_TOKENIZER_BATCH = 64  # texts tokenized at once, and
_BATCH_CHARACTERS = 1 << 20  # characters at once: while tokenizing, a token takes about 100 bytes
# A document beyond this is cut at paragraphs on its way to the tokenizer; it stays on one side.
_LONG = 1 << 20
_LONG_PIECE = 1 << 16
# Documents in memory: how many times the limit is gathered before rows are drawn, to mix them.
_SPARE = 8


@dataclass(frozen=True)
class TokenSplit:
    """Training and held-out windows of tokens: column `input_ids`, `context_size` ints per row.

    Either data set can be the `override_dataset` of SAELens's runners.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    context_size: int
    bos_token_id: int | None  # the first token of every row; None if rows have none
    n_train_documents: int  # gathered, before the limit was drawn
    n_short_documents: int  # too short for one window, so on neither side
    held_out_names: tuple[str, ...]  # even if the limit left no row of theirs

    @property
    def n_held_out_documents(self) -> int:
        return len(self.held_out_names)

    @property
    def n_train_tokens(self) -> int:
        return len(self.train) * self.context_size

    @property
    def n_held_out_tokens(self) -> int:
        return len(self.held_out) * self.context_size


class _Side:
    """Windows gathered for one side, up to `spare` times its limit, which is drawn from them."""

    def __init__(self, max_tokens: int | None, context_size: int, spare: int):
        self.limit = None if max_tokens is None else max_tokens // context_size
        self.spare = spare
        self.windows: list[list[np.ndarray]] = []  # per document; a long one comes in pieces
        self.names: list[str] = []  # per document
        self.shares: list[float] = []  # per document, its position in [0, 1)
        self.n_windows = 0
        self._newest: Document | None = None

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.n_windows >= self.limit * self.spare

    def add(self, document: Document, share: float, windows: np.ndarray) -> None:
        if document is not self._newest:
            self.names.append(document.name)
            self.shares.append(share)
            self.windows.append([])
            self._newest = document
        self.windows[-1].append(windows)
        self.n_windows += len(windows)

    def shuffled(self, seed: int) -> datasets.Dataset:
        # RandomState's stream is frozen for good, Generator's is not.
        rows = np.concatenate([part for windows in self.windows for part in windows])
        rows = rows[np.random.RandomState(seed).permutation(len(rows))[: self.limit]]
        return datasets.Dataset.from_dict({"input_ids": rows})


def split_tokens(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_size: int,
    held_out_fraction: float = 0.1,
    max_train_tokens: int | None = None,
    max_held_out_tokens: int | None = None,
    prepend_bos: bool = True,
    seed: int = 42,
) -> TokenSplit:
    """Cut documents into windows of `context_size` tokens, split by document.

    A document is held out if a hash of `seed` and its text, white space ignored, falls below
    `held_out_fraction`: equal texts always share a side, and adding documents moves no other.
    Windows never cross documents; what does not fill a window is dropped. With `prepend_bos` each
    starts with the tokenizer's BOS token, or its EOS token if it has no BOS (as TransformerLens and
    so SAELens do), or nothing if it has neither. Rows are shuffled by `seed` and cut to the limits.
    Documents are read only until the limits are met: from a list or tuple in an order drawn by the
    same hash, gathering eight times each limit so that many documents share it; from an iterator
    (a stream) in its own order, gathering no more than the limits. Documents of more than a million
    characters are tokenized in pieces that end at a paragraph. The parts of a single text
    (`Document.part_of`) count as documents; if one side would be empty, it gets one of them.

    Raises:
        DataError: if either side has no window, or token ids are not this tokenizer's.
        ConfigError: for an impossible option.
    """
    bos = _first_token(tokenizer) if prepend_bos else None
    body = context_size - (bos is not None)
    if body < 1:
        raise ConfigError(f"context_size={context_size} leaves no room for text")
    if not 0.0 < held_out_fraction < 1.0:
        raise ConfigError(f"held_out_fraction={held_out_fraction} must lie between 0 and 1")
    limits = {"max_train_tokens": max_train_tokens, "max_held_out_tokens": max_held_out_tokens}
    for option, value in limits.items():
        if value is not None and value < context_size:
            raise ConfigError(f"{option}={value} is less than one window of {context_size} tokens")

    documents = join_parts(documents, context_size)
    spare = _SPARE if isinstance(documents, Sequence) else 1
    train, held_out = (_Side(limit, context_size, spare) for limit in limits.values())
    n_short, one_text = 0, True
    drawn = (_draw(document, seed) for document in documents)
    if isinstance(documents, Sequence):
        drawn = iter(sorted(drawn, key=lambda pair: pair[0]))
    sided = (
        (document, share, held_out if share < held_out_fraction else train)
        for (_, share), document in _until_full(drawn, train, held_out)
    )
    for batch in _batches(sided):
        encoded = _encode([piece for *_, piece in batch], tokenizer, bos)
        for (document, share, side, _), ids in zip(batch, encoded, strict=True):
            windows = _windows(ids, body, bos)
            n_short += len(windows) == 0
            one_text = one_text and bool(document.part_of)
            if len(windows) and not side.is_full:
                side.add(document, share, windows)
    if one_text:
        _fill_empty_side(train, held_out)
    for side, name, change in (
        (train, "training", "a smaller held_out_fraction"),
        (held_out, "held-out", "a larger held_out_fraction"),
    ):
        if not side.names:
            raise DataError(
                f"the {name} side is empty: {len(train.names)} documents train, "
                f"{len(held_out.names)} held out, {n_short} shorter than one window of "
                f"{context_size} tokens. Give more documents, a smaller context_size (now "
                f"{context_size}), {change} (now {held_out_fraction}), or another seed"
            )
    return TokenSplit(
        train=train.shuffled(seed),
        held_out=held_out.shuffled(seed),
        context_size=context_size,
        bos_token_id=bos,
        n_train_documents=len(train.names),
        n_short_documents=n_short,
        held_out_names=tuple(held_out.names),
    )


def _fill_empty_side(train: _Side, held_out: _Side) -> None:
    """Give the empty side of a single text the part whose hash lies nearest to it."""
    for empty, full, nearest in ((held_out, train, min), (train, held_out, max)):
        if not empty.names and len(full.names) > 1:
            at = full.shares.index(nearest(full.shares))
            empty.names.append(full.names.pop(at))
            empty.windows.append(full.windows.pop(at))


def _draw(document: Document, seed: int) -> tuple[tuple[int, float], Document]:
    """(reading order, position in [0, 1)) of a document: two halves of one seeded hash."""
    if document.ids is None:
        content = " ".join(document.text.split()).encode()
    else:
        content = b"token ids\0" + document.ids.astype("<i4").tobytes()
    digest = hashlib.sha256(f"{seed}\0".encode() + content).digest()
    order, share = (int.from_bytes(digest[i : i + 8], "big") for i in (0, 8))
    return (order, share / 2**64), document


def _until_full(
    drawn: Iterator[tuple[tuple[int, float], Document]], train: _Side, held_out: _Side
) -> Iterator[tuple[tuple[int, float], Document]]:
    while not (train.is_full and held_out.is_full):
        pair = next(drawn, None)
        if pair is None:
            return
        yield pair


_Piece = tuple[Document, float, _Side, str | np.ndarray]


def _batches(sided: Iterable[tuple[Document, float, _Side]]) -> Iterator[list[_Piece]]:
    """Texts for the tokenizer, bounded in number and in characters; long documents in pieces."""
    batch: list[_Piece] = []
    size = 0
    for document, share, side in sided:
        for piece in _pieces(document):
            batch.append((document, share, side, piece))
            size += len(piece)
            if len(batch) >= _TOKENIZER_BATCH or size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
                if side.is_full:
                    break
    if batch:
        yield batch


def _pieces(document: Document) -> Iterator[str | np.ndarray]:
    if document.ids is not None:
        yield document.ids
    elif len(document.text) <= _LONG:
        yield document.text
    else:
        parts = (Document(part, "", part_of="long") for part in parts_of(document.text))
        yield from (piece.text for piece in joined(parts, _LONG_PIECE))


def _encode(
    pieces: list[str | np.ndarray], tokenizer: PreTrainedTokenizerBase, bos: int | None
) -> Iterator[Sequence[int] | np.ndarray]:
    """Token ids of each piece; rows that are token ids already are checked, their BOS removed."""
    texts = [piece for piece in pieces if isinstance(piece, str)]
    encoded = iter(
        tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else ()
    )
    for piece in pieces:
        if isinstance(piece, str):
            yield next(encoded)
            continue
        if piece.max() >= len(tokenizer):
            raise DataError(
                f"the data hold token id {piece.max()}, and the tokenizer has {len(tokenizer)}: "
                "these token ids were made with another tokenizer"
            )
        yield piece[1:] if bos is not None and piece[0] == bos else piece


def _windows(ids: Sequence[int] | np.ndarray, body: int, bos: int | None) -> np.ndarray:
    """Consecutive windows `[n, body]` of one document, each after `bos` if there is one."""
    n_windows = len(ids) // body
    windows = np.asarray(ids[: n_windows * body], dtype=np.int32).reshape(n_windows, body)
    return windows if bos is None else np.insert(windows, 0, bos, axis=1)


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return cast("int | None", eos if bos is None else bos)
