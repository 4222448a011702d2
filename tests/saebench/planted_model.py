"""Language models whose residual stream is known, and SAEs written by hand for them.

A planted model is a GPT-2 of one or two layers with a word-level tokenizer. Its token embeddings
are given, everything else is zero (LayerNorms are the identity scale): at `HOOK` the residual
stream of a token is its embedding, exactly. An SAE whose latents are those directions reconstructs
it exactly, and flipping a latent (`flipped`),

    W_enc[:, i], b_enc[i], W_dec[i] -> -W_enc[:, i], -b_enc[i], -W_dec[i],

changes no reconstruction of an AbsTopK SAE: only the side on which the latent carries its concept.
So a measure that is right about an SAE says the same of its flipped twin.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_lens_bipolar.saebench import BenchConfig, bench
from tests.tiny_models import BOS, EOS, PAD

HOOK = "blocks.0.hook_resid_post"
UNKNOWN = "<|unk|>"
CONTEXT = 128
Row = dict[str, Any]


def planted_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word; an answer with its letter, "B. word", is one too if `words` has it."""
    special = [BOS, EOS, PAD, UNKNOWN]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # What matches is a token, what lies between is dropped.
    pattern = Regex(r"[A-D]\. [a-z]+|[A-Za-z]+|[^\sA-Za-z]")
    core.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
    )


def planted_model(
    embeddings: Mapping[str, torch.Tensor], n_layer: int = 1
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A GPT-2 that embeds each word as given, `[d_model]`, and writes nothing afterwards.

    Its unembedding is its embedding: it expects the token it has just read. Special and unknown
    tokens have embedding 0.
    """
    tokenizer = planted_tokenizer(embeddings)
    d_model = len(next(iter(embeddings.values())))
    ids: Any = tokenizer  # its annotation allows several tokens of a kind
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=d_model,
        n_layer=n_layer,
        n_head=1,
        tie_word_embeddings=False,
        bos_token_id=ids.bos_token_id,
        eos_token_id=ids.eos_token_id,
        pad_token_id=ids.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        for word, vector in embeddings.items():
            token = tokenizer.convert_tokens_to_ids(word)
            model.transformer.wte.weight[token] = vector
            model.lm_head.weight[token] = vector
    return model, tokenizer


def save_planted(
    directory: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Save as any model directory."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def planted_sae(
    model_dir: Path, encoder: torch.Tensor, decoder: torch.Tensor, k: int
) -> AbsTopKSAE:
    """An AbsTopK SAE at `HOOK` with W_enc `[d_in, d_sae]`, W_dec `[d_sae, d_in]`, no biases."""
    d_sae, d_in = decoder.shape
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k))
    with torch.no_grad():
        sae.W_enc.copy_(encoder)
        sae.W_dec.copy_(decoder)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    sae.cfg.metadata.hook_name = HOOK
    sae.cfg.metadata.model_name = str(model_dir)
    sae.cfg.metadata.context_size = 32
    sae.cfg.metadata.prepend_bos = True
    return sae


def flipped(sae: AbsTopKSAE, latents: Iterable[int]) -> AbsTopKSAE:
    """The twin whose `latents` carry on their other side what they carried; the same function."""
    chosen = torch.tensor([*latents])
    sign = torch.ones(sae.cfg.d_sae).index_fill(0, chosen, -1.0)
    directory = Path(str(sae.cfg.metadata.model_name))
    twin = planted_sae(directory, sae.W_enc * sign, sae.W_dec * sign[:, None], sae.cfg.k)
    with torch.no_grad():
        twin.b_enc.copy_(sae.b_enc * sign)
    return twin


def run_twins(
    output: Path, sae: AbsTopKSAE, latents: Iterable[int], config: BenchConfig
) -> list[Row]:
    """Benchmark `sae` as "upright" and its flipped twin as "flipped"; all rows."""
    folders = []
    for name, one in (("upright", sae), ("flipped", flipped(sae, latents))):
        folders.append(output / "saes" / name)
        one.save_model(folders[-1])
    outcome = bench(folders, output / "bench", config)
    assert outcome.not_run == []
    return outcome.rows


def value(rows: Iterable[Row], sae: str, protocol: str, metric: str, budget: Any = None) -> float:
    """One number of a benchmark."""
    found = [
        row["value"]
        for row in rows
        if (row["sae"], row["protocol"], row["metric"], row["budget"])
        == (sae, protocol, metric, budget)
    ]
    assert len(found) == 1, (sae, protocol, metric, budget, len(found))
    return found[0]
