"""Reviews belong to one part each, openings are neutral and whole, padding is marked."""

from pathlib import Path
from typing import Any

import pytest

from recipes.abstopk import steering_text
from recipes.abstopk.steering_text import PARTS, openings, padded, part_of, reviews_of, windows
from sae_lens_bipolar.errors import DataError
from tests.recipes.abstopk.steering_settings import BAD, GOOD, made_reviews, use_made_reviews
from tests.tiny_models import make_tokenizer


def neutral(text: str) -> float:
    return float(any(word in text.split() for word in (*GOOD, *BAD)))


def test_no_review_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_made_reviews(monkeypatch)
    names = sorted({part for parts in PARTS.values() for part in parts})
    seen: dict[str, str] = {}
    for name in names:
        sides = reviews_of(name)
        assert len(sides[0]) == len(sides[1]) > 5
        for side, words in zip(sides, (GOOD, BAD), strict=True):
            for text in side:
                assert seen.setdefault(text, name) == name
                assert set(words) & set(text.split())
    shares = [part_of(review) for review in made_reviews() if review.source == "imdb"]
    assert shares.count("train") / len(shares) == pytest.approx(0.5, abs=0.05)
    assert reviews_of("test", 3) == tuple(side[:3] for side in reviews_of("test"))
    with pytest.raises(DataError, match="and 9999 are asked for"):
        reviews_of("test", 9999)


def test_openings(monkeypatch: pytest.MonkeyPatch) -> None:
    use_made_reviews(monkeypatch)
    tokenizer: Any = make_tokenizer()
    found = openings(tokenizer, 20, 4, neutral)
    assert len(set(found)) == 20
    starts = {text[:40]: review.positive for review in made_reviews() for text in [review.text]}
    sides = [next(p for start, p in starts.items() if start.startswith(one)) for one in found]
    assert sides.count(True) >= 6
    for one in found:
        assert neutral(one) == 0
        assert len(tokenizer(one, add_special_tokens=False)["input_ids"]) == 4
    with pytest.raises(DataError, match="neutral openings of 4 tokens found"):
        openings(tokenizer, 20, 4, lambda text: 1.0)


def test_rows_of_tokens() -> None:
    tokenizer: Any = make_tokenizer()
    tokens, real = padded(tokenizer, ["the river", "the river near the old library"], 5)
    assert tokens.shape == real.shape == (2, 5)
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert real.sum(1).tolist() == [len(tokenizer("the river")["input_ids"]) + 1, 5]
    rows = windows(tokenizer, ["short", "the river near the old library " * 3], 1, 8)
    assert rows.shape == (1, 8)
    with pytest.raises(DataError, match="0 texts have 8 tokens"):
        windows(tokenizer, ["short"], 1, 8)


def test_the_corpus_is_made_once(
    tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_made_reviews(monkeypatch)
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path))
    load = steering_text.load_documents
    monkeypatch.setattr(steering_text, "load_documents", lambda name: load(tiny_text))
    file = steering_text.training_corpus()
    lines = file.read_text().splitlines()
    train = [review for review in made_reviews() if part_of(review) == "train"]
    assert len(lines) == len(train) + 60  # documents of the text
    assert steering_text.training_corpus() == file
