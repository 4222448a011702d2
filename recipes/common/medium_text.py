"""Text of the scale `medium`: State of the Union addresses and film reviews, and their activations.

Both come from the package registry. A twentieth of the documents, drawn by a hash of their text, is
set aside for validation: learning rates are chosen on it, and nothing else reads it. The rest is
split by document into training and held-out text, as `split_tokens` does.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.labelled_text import MOVIE_REVIEWS, labelled_reviews
from recipes.common.scales import build
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import user_cache_dir
from sae_lens_bipolar.inputs.activations import CachedActivations
from sae_lens_bipolar.inputs.caching import CacheConfig, cache_activations
from sae_lens_bipolar.inputs.corpora import load_documents
from sae_lens_bipolar.inputs.fetch import built_once

MEDIUM = "sotu and film reviews"  # as a scale's `cache: {corpus: ...}` names it
_SET_ASIDE = 0.05
_LEAST = 8  # documents set aside
_VERSION = 1


class Texts(NamedTuple):
    """Two JSON Lines files, column `text`."""

    training: Path  # of which a part is held out
    validation: Path


def texts(corpus: str = MEDIUM) -> Texts:
    """The text of a scale; made once and kept.

    Args:
        corpus: `MEDIUM`, or a local file that `load_documents` reads.

    Raises:
        DataError: if a source cannot be had.
    """
    key = f"{_VERSION} {MOVIE_REVIEWS.sha256}" if corpus == MEDIUM else _content(Path(corpus))
    name = hashlib.sha256(key.encode()).hexdigest()[:12]

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        found = list(dict.fromkeys(document.text for document in _documents(corpus)))
        aside = set(sorted(found, key=_place)[: max(_LEAST, round(_SET_ASIDE * len(found)))])
        for name, wanted in (("training", False), ("validation", True)):
            lines = [json.dumps({"text": text}) for text in found if (text in aside) == wanted]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    folder = built_once(user_cache_dir() / "medium-text" / name, write)
    return Texts(folder / "training.jsonl", folder / "validation.jsonl")


def _place(text: str) -> bytes:
    """Where a document lies among the others, by its content."""
    return hashlib.sha256(b"validation\0" + text.encode()).digest()


class _Text(NamedTuple):
    text: str


def _documents(corpus: str) -> Any:
    yield from load_documents("sotu" if corpus == MEDIUM else corpus)
    if corpus == MEDIUM:
        yield from (_Text(one.text) for one in labelled_reviews() if one.source == "imdb")


def _content(file: Path) -> str:
    if not file.is_file():
        raise ConfigError(f"cache: corpus={str(file)!r} is neither a file nor {MEDIUM!r}")
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Study(NamedTuple):
    """What the cells of a scale with a section `cache` read."""

    cache: Path  # activations
    corpus: Path  # of which they are, and of which the held-out documents are
    validation: Path  # text that learning rates are chosen on


def study(settings: Mapping[str, Any], folder: Path) -> Study:
    """Cache what a scale's section `cache` says, or what is missing of it.

    Args:
        settings: fields of `CacheConfig`; `corpus` as in `texts`.
        folder: of the cache; several recipes may share it.

    Raises:
        ConfigError: naming a field that is not allowed.
        DataError: if the folder holds a cache of other things.
    """
    found = texts(settings.get("corpus", MEDIUM))
    config = build(CacheConfig, {**settings, "corpus": str(found.training)}, "cache")
    cache: CachedActivations = cache_activations(config, folder)
    return Study(cache.folder.resolve(), found.training, found.validation)
