"""Tiny models of both kinds, random SAEs, and hand-written edits to compare with."""

from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_bipolar.inputs.models import load_model

KINDS = ("hooked", "transformers")
HOOK = "blocks.1.hook_resid_post"


def load(kind: str, directory: Path) -> Any:
    """The model in `directory` as a HookedTransformer or a Transformers model."""
    if kind == "hooked":
        return load_model(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def tokenizer_in(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits `[batch, position, vocabulary]` of a plain pass of either kind of model."""
    if isinstance(model, HookedTransformer):
        return model(tokens, prepend_bos=False, attention_mask=mask)
    return model(tokens, attention_mask=mask).logits


def some_tokens(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Token ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 384, (batch, length), generator=generator)


def direction(size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
