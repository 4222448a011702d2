"""Tiny saved models that SAEBench can say something about, and SAEs for them.

The tokenizer holds words of one token for every letter, the embedding says which letter a token
starts with.
"""

import copy
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUSAE, BiJumpReLUSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedSAE,
    SignAwareGatedSAEConfig,
)
from sae_lens_bipolar.architectures.unrolled_abstopk import (
    UnrolledAbsTopKSAE,
    UnrolledAbsTopKSAEConfig,
)
from sae_lens_bipolar.saebench import BenchConfig
from tests.tiny_models import BOS, CONTEXT, EOS, PAD, save_tiny_model, sentences

D_IN, D_SAE, K = 32, 48, 6
HOOK = "blocks.0.hook_resid_post"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def bench_words() -> list[str]:
    """Sixteen made-up words per letter."""
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
    """A tiny random model whose embedding has a direction per first letter."""
    tokenizer = bench_tokenizer()
    save_tiny_model(directory, architecture, vocab_size=len(tokenizer), hidden_size=D_IN)
    model = AutoModelForCausalLM.from_pretrained(directory)
    embedding: Any = model.get_input_embeddings().weight
    with torch.no_grad():
        for token, i in tokenizer.get_vocab().items():
            word = tokenizer.convert_tokens_to_string([token]).strip().lower()
            if word.isalpha() and word[0] in LETTERS:
                embedding[i, LETTERS.index(word[0])] += 3.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


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


def doubled_topk(sae: Any) -> TopKSAE:
    """A stock TopK SAE of an AbsTopK's weights, doubled by hand: another route to its split."""
    cfg = TopKSAEConfig(
        d_in=sae.cfg.d_in,
        d_sae=2 * sae.cfg.d_sae,
        k=sae.cfg.k,  # type: ignore[attr-defined]
        rescale_acts_by_decoder_norm=sae.cfg.rescale_acts_by_decoder_norm,  # type: ignore[attr-defined]
        metadata=copy.deepcopy(sae.cfg.metadata),
    )
    twin: Any = TopKSAE(cfg)
    with torch.no_grad():
        for i in range(sae.cfg.d_sae):
            for row, sign in ((i, 1.0), (sae.cfg.d_sae + i, -1.0)):
                twin.W_enc[:, row] = sign * sae.W_enc[:, i]
                twin.W_dec[row] = sign * sae.W_dec[i]
                twin.b_enc[row] = sign * sae.b_enc[i]
        twin.b_dec.copy_(sae.b_dec)
    return twin


def tiny_config(**changes: Any) -> BenchConfig:
    """Sizes of seconds; every suite reads its own data set in full variety."""
    sizes: dict[str, Any] = {
        "trust_remote_code": True,  # codeparrot/github-code is a script
        "context_length": 24,
        "llm_batch_size": 32,
        "absorption_max_k": 2,
        "absorption_min_letters": 5,
        "absorption_epochs": 3,
        "absorption_words": 416,
        "ablation_n": (2, 5, 10, 20),
        "ablation_train_size": 40,
        "ablation_test_size": 24,
        "ablation_epochs": 3,
        "probing_train_size": 40,
        "probing_test_size": 24,
        "scr_pairs": 1,
        "ravel_entities": 24,
        "ravel_pairs": 12,
        "ravel_epochs": 1,
        "ravel_generated_tokens": 3,
        "ravel_batch_size": 4,
        "unlearning_known": "given_order",
        "unlearning_n": (2,),
        "unlearning_multipliers": (1,),
        "unlearning_retain": (0.9,),
        "unlearning_sequences": 8,
        "unlearning_length": 32,
        "core_batch_size": 4,
        "core_reconstruction_batches": 1,
        "core_sparsity_batches": 2,
    }
    return BenchConfig(**{**sizes, **changes})
