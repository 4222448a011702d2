"""A fixed sample of a data set too large to download, on disk, so that every model reads the same.

The Pile has 800 GB and the AbsTopK paper trains on 123 million tokens of it.
"""

import json
import re
from pathlib import Path

from sae_lens_bipolar.errors import DataError, require_number
from sae_lens_bipolar.inputs.corpora import load_documents
from sae_lens_bipolar.inputs.fetch import built_once


def text_sample(corpus: str, characters: int, folder: Path) -> Path:
    """The first documents of `corpus`, `characters` of them or a little more, as a JSON Lines file.

    `corpus` is what `load_documents` reads; it is streamed once, in its own order, into `folder`.

    Raises:
        ConfigError: if `characters` is below 1.
        DataError: if the corpus cannot be read, or is shorter.
    """
    require_number(characters, "corpus_characters", minimum=1)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", corpus).strip("-.")

    def build(path: Path) -> None:
        written = 0
        with path.open("w", encoding="utf-8") as file:
            for document in load_documents(corpus, streaming=True):
                file.write(json.dumps({"text": document.text}) + "\n")
                written += len(document.text)
                if written >= characters:
                    return
        raise DataError(f"{corpus} has {written} characters, and {characters} are asked for")

    return built_once(folder / f"{name}-{characters}.jsonl", build)
