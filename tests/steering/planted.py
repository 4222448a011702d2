"""A model with a concept planted along one direction, and an SAE that carries it negatively.

The residual stream of a word is its embedding, exactly: hot words are `own + 2 d`, cold words
`own - 2 d`, others `own`, where `d` and all the words' own directions are orthonormal. Latent
`LATENT` of the SAE reads and writes `-d`, so that it is below 0 on hot words.
"""

import random
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_lens_bipolar.inputs.models import load_model
from tests.tiny_models import BOS, EOS, PAD

HOOK = "blocks.0.hook_resid_post"
WIDTH, D_SAE, LATENT = 64, 48, 7
HOT = ("fire", "sun", "oven", "steam", "summer", "desert")
COLD = ("ice", "snow", "frost", "winter", "glacier", "hail")
OTHER = ("book", "chair", "road", "song", "bread", "lamp", "river", "door", "stone", "coin")
WORDS = (*HOT, *COLD, *OTHER)


def basis() -> torch.Tensor:
    """Orthonormal rows without a mean, `[1 + words, WIDTH]`: LayerNorm leaves their directions."""
    drawn = torch.randn(WIDTH, 1 + len(WORDS), generator=torch.Generator().manual_seed(3))
    drawn -= drawn.mean(0)
    return torch.linalg.qr(drawn)[0].T


CONCEPT = basis()[0]


def planted_model() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The model as Transformers' own class, and its tokenizer of one token per word."""
    vocabulary = {word: i for i, word in enumerate((BOS, EOS, PAD, *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=PAD
    )
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=64,
        n_embd=WIDTH,
        n_layer=1,
        n_head=1,
        tie_word_embeddings=False,
        architectures=["GPT2LMHeadModel"],
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    own = basis()[1:]
    for i, word in enumerate(WORDS):
        vector = own[i] + (2 * CONCEPT if word in HOT else -2 * CONCEPT if word in COLD else 0)
        model.transformer.wte.weight[vocabulary[word]] = vector
        model.lm_head.weight[vocabulary[word]] = vector
    return model, tokenizer


def planted_hooked(directory: Path) -> Any:
    """The same as a HookedTransformer, saved to `directory` on the way."""
    for part in planted_model():
        part.save_pretrained(directory)
    return load_model(directory)


def planted_sae() -> AbsTopKSAE:
    """An AbsTopK SAE of the planted directions, in an order of its own, and unrelated latents."""
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=WIDTH, d_sae=D_SAE, k=2))
    drawn = torch.randn(D_SAE, WIDTH, generator=torch.Generator().manual_seed(4))
    directions = torch.nn.functional.normalize(drawn, dim=1) * 0.5
    directions[LATENT] = -CONCEPT
    directions[10 : 10 + len(WORDS)] = basis()[1:]
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    sae.cfg.metadata.hook_name = HOOK
    return sae


def texts(kind: tuple[str, ...], n: int, seed: int, length: int = 6) -> list[str]:
    """Texts of other words with one word of `kind` among them."""
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        words = [draw.choice(OTHER) for _ in range(length)]
        words[draw.randrange(length)] = draw.choice(kind)
        found.append(" ".join(words))
    return found
