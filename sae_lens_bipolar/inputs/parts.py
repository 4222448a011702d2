"""Neighbouring parts of a single text, joined to the size that a split needs."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from sae_lens_bipolar.inputs.documents import Document

_CHARACTERS_PER_TOKEN = 5  # rather more than in most text, so that parts are not too short


def join_parts(documents: Iterable[Document], context_size: int) -> Iterable[Document]:
    """Neighbouring parts of a single text joined, so that each gives a few windows.

    A part gives at least two windows, so that a short text has many parts, and up to sixteen in a
    long text, so that little is lost at the ends of parts. Other documents are left alone.
    """
    window = context_size * _CHARACTERS_PER_TOKEN
    if isinstance(documents, Sequence):
        if not documents or not documents[0].part_of:
            return documents
        total = sum(document.n_characters for document in documents)
        return [*joined(documents, min(max(total // 64, 2 * window), 16 * window))]
    stream = iter(documents)
    first = next(stream, None)
    if first is None:
        return iter(())
    stream = chain([first], stream)
    return joined(stream, 16 * window) if first.part_of else stream


def joined(documents: Iterable[Document], n_characters: int) -> Iterator[Document]:
    """`documents` with neighbours of the same `part_of` joined to at least `n_characters`."""
    held: list[Document] = []
    size = 0
    for document in documents:
        if held and (size >= n_characters or document.part_of != held[0].part_of):
            yield _join(held)
            held, size = [], 0
        held.append(document)
        size += document.n_characters
    if held:
        yield _join(held)


def _join(parts: list[Document]) -> Document:
    first = parts[0]
    if first.ids is not None:
        ids = np.concatenate([part.ids for part in parts if part.ids is not None])
        return Document("", first.name, ids, first.part_of)
    return Document("".join(part.text for part in parts), first.name, part_of=first.part_of)
