"""Tokens as the page shows them: ranked by how often the corpus holds them, as text."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_REPLACEMENT = "\ufffd"
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that occur, most frequent first; the rank of a token is its number on the page."""

    ids: np.ndarray  # [n], by rank
    counts: np.ndarray  # [n]: in the corpus; 0 for tokens that are only promoted
    ranks: np.ndarray  # [d_vocab], by id; of other tokens the number is meaningless

    @classmethod
    def of(cls, tokens: torch.Tensor, others: Iterable[torch.Tensor], d_vocab: int) -> "Vocabulary":
        """The tokens of a corpus, and those that `others` hold besides."""
        counts = np.bincount(tokens.numpy().ravel(), minlength=d_vocab)
        used = counts > 0
        for other in others:
            used[other.numpy().ravel()] = True
        ids = used.nonzero()[0]
        ids = ids[np.argsort(-counts[ids], kind="stable")]
        ranks = np.zeros(len(counts), dtype=np.int64)
        ranks[ids] = np.arange(len(ids))
        return cls(ids, counts[ids], ranks)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """Each token by itself as text; one that is part of a character, as its bytes: `\\xe2\\x80`."""
    listed = [int(one) for one in ids]
    texts = [str(tokenizer.decode([one])) for one in listed]
    return [
        _as_bytes(tokenizer, one) if _REPLACEMENT in text else text
        for one, text in zip(listed, texts, strict=True)
    ]


def _as_bytes(tokenizer: PreTrainedTokenizerBase, one: int) -> str:
    token = str(tokenizer.convert_ids_to_tokens(one))
    if all(character in _BYTES for character in token):  # byte-level BPE
        return "".join(
            chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
            for byte in (_BYTES[character] for character in token)
        )
    return token
