"""Judges of sentiment that know nothing of the steered model: scores of texts in [-1, 1]."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recipes.abstopk.steering_text import reviews_of
from sae_lens_bipolar.errors import ConfigError

Judge = Callable[[Sequence[str]], np.ndarray]  # texts -> scores `[n]`; 1 is positive
JUDGES = ("vader", "reviews")


def vader() -> Judge:
    """The compound score of VADER, a list of words with rules (Hutto and Gilbert 2014).

    Raises:
        ConfigError: if vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError(
            "the judge 'vader' needs vaderSentiment: pip install 'sae-lens-bipolar[steering]'"
        ) from error
    analyzer = SentimentIntensityAnalyzer()

    def judge(texts: Sequence[str]) -> np.ndarray:
        return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])

    return judge


def reviews(n_per_side: int | None = None) -> tuple[Judge, float]:
    """Logistic regression on TF-IDF of labelled reviews; its score is `2 P(positive) - 1`.

    It learns from openings of reviews of the part "judge", 25 words long, because what it judges is
    as short.

    Returns:
        The judge, and its accuracy on the quarter of the reviews that it was not fitted to.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ConfigError(
            "the judge 'reviews' needs scikit-learn: pip install 'sae-lens-bipolar[steering]'"
        ) from error
    sides = reviews_of("judge", n_per_side)
    texts = [" ".join(text.split()[:25]) for pair in zip(*sides, strict=True) for text in pair]
    labels = np.tile([1, 0], len(sides[0]))
    cut = 3 * len(texts) // 4
    model: Any = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=4.0, max_iter=500),
    ).fit(texts[:cut], labels[:cut])

    def judge(found: Sequence[str]) -> np.ndarray:
        return 2 * model.predict_proba(list(found))[:, 1] - 1

    return judge, float(model.score(texts[cut:], labels[cut:]))


def make(n_per_side: int | None = None) -> tuple[dict[str, Judge], float]:
    """Both judges by name, and the accuracy of the one that was fitted."""
    fitted, accuracy = reviews(n_per_side)
    return dict(zip(JUDGES, (vader(), fitted), strict=True)), accuracy
