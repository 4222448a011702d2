"""Damaged copies in this package's own cache: the message names the file and what to do."""

import shutil
from pathlib import Path

import pytest

from sae_lens_bipolar.errors import DataError, ModelError
from sae_lens_bipolar.inputs.documents import load_documents
from sae_lens_bipolar.inputs.models import DEFAULT_MODEL, bundled_model_path, load_model
from sae_lens_bipolar.inputs.sotu import SOTU


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["truncated", "noise", "missing"])
def test_a_damaged_model(
    cache: Path, tiny_model_dirs: dict[str, Path], file: str, how: str
) -> None:
    model = bundled_model_path(DEFAULT_MODEL)
    shutil.copytree(tiny_model_dirs["llama"], model)
    whole = (model / file).read_bytes()
    if how == "missing":
        (model / file).unlink()
    else:
        (model / file).write_bytes(whole[: len(whole) // 2] if how == "truncated" else b"\xff\x00x")
    with pytest.raises(ModelError) as caught:
        load_model(DEFAULT_MODEL)
    assert f"remove {model}, and it is fetched again" in str(caught.value)


@pytest.mark.parametrize("content", ['{"text": "a", "na', "[1]\n", '{"other": 1}\n', "\udcff"])
def test_a_damaged_corpus(cache: Path, content: str) -> None:
    corpus = cache / "corpora" / f"sotu-{SOTU.sha256[:12]}.jsonl"
    corpus.parent.mkdir()
    corpus.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"is damaged .* remove it, and it is fetched again"):
        load_documents("sotu")
