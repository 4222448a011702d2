"""Tiny saved models that SAEBench can say something about, and SAEs for them.

The tokenizer holds words of one token for every letter, the embedding says which letter a token
starts with, and RAVEL's attributes are what the model itself answers.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from tiny_models import BOS, CONTEXT, EOS, PAD, save_tiny_model, sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUSAE, BiJumpReLUSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedSAE,
    SignAwareGatedSAEConfig,
)
from sae_lens_bipolar.architectures.unrolled_abstopk import (
    UnrolledAbsTopKSAE,
    UnrolledAbsTopKSAEConfig,
)

D_IN, D_SAE, K = 32, 48, 6
HOOK = "blocks.0.hook_resid_post"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ENTITIES = {
    "city": ("Country", "Continent", "Language"),
    "nobel_prize_winner": ("Country of Birth", "Field", "Gender"),
}


def bench_words() -> list[str]:
    """Sixteen made-up words a letter."""
    draw = random.Random(3)
    words = {
        letter + "".join(draw.choice(part) for part in ("aeiou", "bdklmnrst", "aeiou", "dklmnrs"))
        for letter in LETTERS
        for _ in range(24)
    }
    by_letter = {
        letter: sorted(word for word in words if word[0] == letter)[:16] for letter in LETTERS
    }
    return [word for group in by_letter.values() for word in group]


def bench_tokenizer(vocabulary: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which each of `bench_words` and of the prompt's words is one token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = [" has the first letter:"] * 50 + [f" {x}" for x in LETTERS.upper()] * 50
    stream = sentences(1000)
    core.train_from_iterator(
        [*bench_words() * 5, *template, *(next(stream) for _ in range(300))], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT
    )


def save_bench_model(directory: Path, architecture: str) -> Path:
    """A tiny random model whose embedding has a direction a first letter."""
    tokenizer = bench_tokenizer()
    save_tiny_model(directory, architecture, vocab_size=len(tokenizer), hidden_size=D_IN)
    model = AutoModelForCausalLM.from_pretrained(directory)
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for token, i in tokenizer.get_vocab().items():
            word = tokenizer.convert_tokens_to_string([token]).strip().lower()
            if word.isalpha() and word[0] in LETTERS:
                embedding[i, LETTERS.index(word[0])] += 3.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_ravel(folder: Path, model_dir: Path, entities: int = 24) -> Path:
    """RAVEL's four files an entity class; an attribute is what the model says after its prompt."""
    folder.mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    names = [word.capitalize() for word in bench_words()[::16]][:entities]
    for entity, attributes in ENTITIES.items():
        templates = {name: [f"The {name.lower()} near %s is"] for name in attributes}
        labels = {
            name: {
                attribute: _answer(model, tokenizer, templates[attribute][0] % name)
                for attribute in attributes
            }
            for name in names
        }
        splits = {templates[name][0]: "train" for name in attributes}
        files = {
            "attribute_to_prompts": templates,
            "prompt_to_split": splits,
            "entity_attributes": labels,
            "entity_to_split": dict.fromkeys(names, "train"),
        }
        for kind, content in files.items():
            (folder / f"ravel_{entity}_{kind}.json").write_text(json.dumps(content))
    return folder


@torch.no_grad()
def _answer(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = torch.tensor([tokenizer.encode(prompt)])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)
    return tokenizer.decode(found[0, -6:]).split('"')[0].strip(' "')


_CLASSES: dict[str, Callable[..., SAE[Any]]] = {
    "topk": lambda **cfg: TopKSAE(TopKSAEConfig(k=K, **cfg)),
    "jumprelu": lambda **cfg: JumpReLUSAE(JumpReLUSAEConfig(**cfg)),
    "gated": lambda **cfg: GatedSAE(GatedSAEConfig(**cfg)),
    "abstopk": lambda **cfg: AbsTopKSAE(AbsTopKSAEConfig(k=K, **cfg)),
    "sign_aware_gated": lambda **cfg: SignAwareGatedSAE(SignAwareGatedSAEConfig(**cfg)),
    "bi_jumprelu": lambda **cfg: BiJumpReLUSAE(BiJumpReLUSAEConfig(**cfg)),
    "unrolled_abstopk": lambda **cfg: UnrolledAbsTopKSAE(
        UnrolledAbsTopKSAEConfig(k=K, n_steps=3, **cfg)
    ),
}
ARCHITECTURES = ("topk", "jumprelu", "gated", "abstopk", "sign_aware_gated", "bi_jumprelu")


def bench_sae(architecture: str, model_dir: Path, seed: int = 0, **cfg: Any) -> SAE[Any]:
    """A random SAE at `HOOK`; half its latents read a letter each, so that probes find some."""
    sae = _CLASSES[architecture](**{"d_in": D_IN, "d_sae": D_SAE, **cfg})
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(sae.cfg.d_sae, D_IN, generator=generator) / D_IN**0.5
    directions[:26] = torch.eye(D_IN)[:26] + directions[:26] / 10
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name == "W_dec":
                drawn = directions * (0.5 + torch.rand(sae.cfg.d_sae, 1, generator=generator))
            elif name == "W_enc":
                drawn = directions.T.clone()
            elif "threshold" in name or name.startswith("log_"):
                drawn = drawn.abs() / 4 + 0.1
            else:
                drawn = drawn / 10
            parameter.copy_(drawn)
    sae.cfg.metadata.hook_name = HOOK
    sae.cfg.metadata.model_name = str(model_dir)
    sae.cfg.metadata.context_size = 32
    sae.cfg.metadata.prepend_bos = True
    return sae


def save_bench_sae(folder: Path, sae: SAE[Any]) -> Path:
    """Save as SAELens does."""
    sae.save_model(folder)
    return folder
