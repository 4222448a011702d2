"""Fixtures every test may use; tests never reach the Hugging Face Hub or a tracking service."""

import os
from pathlib import Path

# Before any host is imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels then run in Python; it reads this once

from transformer_lens import HookedTransformer

from tests.tiny_models import TINY_ARCHITECTURES, save_tiny_model, write_text

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture name -> directory of a tiny random model with its tokenizer."""
    root = tmp_path_factory.mktemp("tiny-models")
    return {name: save_tiny_model(root / name, name) for name in TINY_ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 60 documents, columns `title` and `text`."""
    return write_text(tmp_path_factory.mktemp("text") / "chapters.jsonl")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dirs: dict[str, Path]) -> HookedTransformer:
    """The tiny GPT-2 (2 layers, d_model 32) as the package's loader gives it. Do not alter it."""
    from sae_lens_bipolar.inputs.models import load_model

    return load_model(str(tiny_model_dirs["gpt2"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
