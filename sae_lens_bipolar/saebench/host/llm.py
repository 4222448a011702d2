"""The language model of a benchmark: one object, under a bare alias, for every suite."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sae_lens_bipolar.errors import BenchError, ModelError
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of
from sae_lens_bipolar.inputs.patching import replaced

_WEIGHTS = ("*.safetensors", "config.json", "tokenizer.json")


class LanguageModel:
    """A HookedTransformer for SAELens-based suites and, when RAVEL asks, the Transformers model.

    `alias` is a name without path separators: an absolute path as SAEBench's `model_name` makes
    `os.path.join` drop the artifacts folder, and caches land in the model's own folder.
    """

    def __init__(self, name: str, device: str, dtype: str, trust_remote_code: bool = False):
        self.name = name
        self.device = device
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.trust_remote_code = trust_remote_code
        self.hooked: HookedTransformer = load_model(
            name, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        self.alias = re.sub(r"[^A-Za-z0-9._-]+", "-", str(self.hooked.cfg.model_name))
        self.hooked.cfg.model_name = self.alias
        self.path = str(self.hooked.cfg.tokenizer_name)  # directory or Hub name

    @property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.hooked)

    @cached_property
    def transformers(self) -> PreTrainedModel:
        """The same weights as a Transformers model, without gradients and in evaluation mode."""
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=self.dtype,
                use_safetensors=True,
                attn_implementation="eager",  # what SAEBench gives Gemma; the same numbers for all
                **options,
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{self.path} cannot be loaded for RAVEL: {error}") from error
        return model.eval().requires_grad_(False).to(self.device)  # pyright: ignore

    def plain_tokenizer(self) -> Any:
        """The tokenizer as Transformers gives it, as RAVEL reads it."""
        return AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What makes it the same model: where it lies and, for a directory, its files."""
        found: dict[str, Any] = {"path": self.path, "dtype": str(self.dtype), "device": self.device}
        folder = Path(self.path)
        if folder.is_dir():
            files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
            found["files"] = [
                [file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files
            ]
        return found


@contextmanager
def served(model: LanguageModel) -> Iterator[None]:
    """Every suite's `HookedTransformer.from_pretrained_no_processing(alias)` gives `model`.

    Works around sae_bench 0.6.0, which loads by name only (for instance
    evals/absorption/main.py:59) and so neither a directory nor a model that TransformerLens does
    not list. Afterwards the model's hooks and name are as they were.
    """

    def give(name: str, *_: Any, **__: Any) -> HookedTransformer:
        if name != model.alias:
            raise BenchError(f"SAEBench asked for model {name!r}, and {model.alias!r} is loaded")
        return model.hooked

    hooked = model.hooked
    with replaced(HookedTransformer, from_pretrained_no_processing=staticmethod(give)):
        try:
            yield
        finally:
            hooked.reset_hooks()
            hooked.cfg.model_name = model.alias
