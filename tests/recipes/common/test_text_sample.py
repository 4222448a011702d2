"""A sample of a corpus is its first documents, whole, made once."""

import json
from pathlib import Path

import pytest

from recipes.common.text_sample import text_sample
from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.inputs.corpora import load_documents


def test_the_first_documents_whole(tiny_text: Path, tmp_path: Path) -> None:
    documents = [document.text for document in load_documents(tiny_text)]
    wanted = len(documents[0]) + 1  # one character of the second: all of it is kept
    path = text_sample(str(tiny_text), wanted, tmp_path)
    assert [document.text for document in load_documents(path)] == documents[:2]
    made = path.stat().st_mtime_ns
    assert text_sample(str(tiny_text), wanted, tmp_path) == path
    assert path.stat().st_mtime_ns == made
    path.write_text(json.dumps({"text": "altered"}) + "\n")
    with pytest.raises(DataError, match="is damaged"):
        text_sample(str(tiny_text), wanted, tmp_path)


def test_too_short_a_corpus_leaves_no_file(tiny_text: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="100000000 are asked for"):
        text_sample(str(tiny_text), 10**8, tmp_path / "text")
    assert not list((tmp_path / "text").glob("*.jsonl"))
    with pytest.raises(ConfigError, match="corpus_characters=0"):
        text_sample(str(tiny_text), 0, tmp_path / "text")
