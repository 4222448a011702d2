"""Tiny random language models and a small text data set, saved as ordinary local directories.

One directory an architecture, as `save_pretrained` writes it: config.json, model.safetensors and a
real byte-level BPE tokenizer with bos, eos and pad tokens. Every parameter is random (also norms
and biases, which start at constants), large enough for attention, soft caps and windows to matter.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SmolLM3Config,
)
from transformers import PretrainedConfig as Config

VOCABULARY = 384
CONTEXT = 128
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

_PARTS = (
    ("the river", "a small engine", "our teacher", "the old library", "every sparrow"),
    ("carries", "remembers", "does not like", "has never seen", "returns", "slowly opens"),
    ("the letters", "warm bread", "seven green lamps", "its own shadow", "a song of winter"),
    ("at dawn", "near the harbour", "before the war", "in the north", "after the long rain"),
)


def sentences(seed: int) -> Iterator[str]:
    """Endless grammatical nonsense, the same for the same seed."""
    draw = random.Random(seed)
    while True:
        words = (draw.choice(part) for part in _PARTS)
        yield " ".join(words).capitalize() + "."


def write_text(path: Path, documents: int = 60) -> Path:
    """Write `documents` distinct texts of 15 to 39 sentences as JSON lines, column `text`."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(documents):
            stream = sentences(i)
            text = f"Chapter {i}. " + " ".join(next(stream) for _ in range(15 + i % 25))
            file.write(json.dumps({"title": f"chapter-{i}", "text": text}) + "\n")
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens trained on a few hundred of the sentences."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = sentences(1000)
    core.train_from_iterator((next(stream) for _ in range(300)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT
    )


def _llama_like(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        **SPECIAL,
        **more,
    }


_CONFIGS: dict[str, tuple[type[Config], dict[str, Any]]] = {
    "gpt2": (
        GPT2Config,
        {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
        | SPECIAL,
    ),
    "gpt_neox": (
        GPTNeoXConfig,
        {key: value for key, value in _llama_like().items() if key != "num_key_value_heads"},
    ),
    "gemma2": (
        Gemma2Config,
        _llama_like(
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=8,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "qwen3": (Qwen3Config, _llama_like(head_dim=16)),
    "llama": (LlamaConfig, _llama_like()),
    "smollm3": (
        SmolLM3Config,
        _llama_like(num_hidden_layers=4, no_rope_layer_interval=2, tie_word_embeddings=True),
    ),
}
TINY_ARCHITECTURES = list(_CONFIGS)


def tiny_config(architecture: str, **changes: Any) -> Config:
    """The Transformers config of a tiny model, with `changes` to its fields."""
    kind, fields = _CONFIGS[architecture]
    return kind(**fields | changes)


def save_tiny_model(directory: Path, architecture: str, **changes: Any) -> Path:
    """Save a random model and its tokenizer under `directory`; `changes` alter config fields."""
    generator = torch.Generator().manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            # Gemma's norms multiply by 1 + weight, everyone else's by weight.
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            centre = 1.0 if ".ln_" in name and name.endswith("weight") else centre
            parameter.copy_(scale * noise + (0.0 if architecture == "gemma2" else centre))
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory
