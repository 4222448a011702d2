"""The steering recipes at their smallest: a tiny model, and reviews made of a few words."""

import random
from pathlib import Path
from typing import Any

import pytest

from recipes.abstopk import steering_text
from recipes.common.labelled_text import Review

GOOD, BAD = ("wonderful", "great", "lovely", "superb"), ("awful", "terrible", "dull", "boring")
PLAIN = (
    "the",
    "river",
    "engine",
    "teacher",
    "library",
    "sparrow",
    "carries",
    "remembers",
    "returns",
)
PLAIN += (
    "bread",
    "lamps",
    "shadow",
    "song",
    "harbour",
    "north",
    "letters",
    "near",
    "at",
    "before",
    "in",
)


def made_reviews(n: int = 1600) -> list[Review]:
    """Reviews of both sources, each text once."""
    draw = random.Random(0)
    found: dict[str, Review] = {}
    while len(found) < n:
        positive = draw.random() < 0.5
        words = [draw.choice(PLAIN) for _ in range(30)]
        for at in range(14, 30, 3):  # openings are neutral
            words[at] = draw.choice(GOOD if positive else BAD)
        source = draw.choice(("imdb", "rotten_tomatoes"))
        text = " ".join(words)
        found[text] = Review(text, positive, source)
    return list(found.values())


def use_made_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = made_reviews()
    monkeypatch.setattr(steering_text, "labelled_reviews", lambda: reviews)


def tiny_saes(model: Path, text: Path, **more: Any) -> dict[str, Any]:
    """Fields of SAEPlan on a tiny model of d_model 32."""
    return {
        "model": str(model),
        "layer": 0,
        "width": 48,
        "k": 6,
        "seeds": [0, 1],
        "jumprelu": {"jumprelu_init_threshold": 0.05, "l0_coefficient": 0.01},
        "sweep": {
            "corpus": str(text),
            "context_size": 32,
            "training_tokens": 512,
            "train_batch_size_tokens": 128,
            "lr_warm_up_steps": 0,
            "lr_decay_steps": 0,
            "n_checkpoints": 1,
            "store_batch_size_prompts": 4,
            "n_batches_in_buffer": 8,
            "eval_sequences": 8,
            "loss_sequences": 4,
        },
        **more,
    }
