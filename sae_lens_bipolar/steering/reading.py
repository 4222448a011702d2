"""Activations of texts at a hook, from both kinds of model, padding and sinks marked."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerBase

from sae_lens_bipolar.errors import DataError, ModelError
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.steering.hook_points import Model, find_site

Text = Sequence[str] | torch.Tensor  # texts, or token ids [sequences, context_size]


@dataclass(frozen=True)
class Batch:
    """Activations of a few texts."""

    x: torch.Tensor  # [batch, position, ...]
    tokens: torch.Tensor  # [batch, position]
    keep: torch.Tensor  # bool [batch, position]: not padding, not a first special token, not a sink


@torch.no_grad()
def read(
    model: Model,
    text: Text,
    hook: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
) -> Iterator[Batch]:
    """Activations of `text` at `hook`, batch by batch, in order.

    Texts are tokenised without special tokens, after BOS (or EOS where there is no BOS), and cut
    at the length of the model's context. Attention sinks are the tokens whose norm exceeds ten
    times the median of the first batch.

    Raises:
        ModelError: if the model has no such hook, or texts need a tokenizer.
        DataError: if there is no text, or one without tokens.
    """
    site = find_site(model, hook)
    if not len(text):
        raise DataError("no text given: give at least one")
    rows = text if isinstance(text, torch.Tensor) else _tokenise(model, text, tokenizer)
    first = first_token(tokenizer_for(model, tokenizer, required=False))
    threshold: float | None = None
    for start in range(0, len(rows), batch_size):
        tokens, real = _padded(rows[start : start + batch_size])
        x = _activations(model, site, tokens, real)
        norms = x.flatten(2).float().norm(dim=-1)
        keep = real.to(x.device)
        keep[:, 0] &= (tokens[:, 0] != first).to(x.device)
        if threshold is None:
            threshold = sink_threshold(x.flatten(2)[keep].float())
        yield Batch(x, tokens, keep & (norms <= threshold))


def tokenizer_for(
    model: Model, tokenizer: PreTrainedTokenizerBase | None, required: bool = True
) -> PreTrainedTokenizerBase | None:
    """The tokenizer given, or that of a HookedTransformer.

    Raises:
        ModelError: if one is required and there is none.
    """
    if tokenizer is not None:
        return tokenizer
    if isinstance(model, HookedTransformer):
        return tokenizer_of(model) if required else model.tokenizer
    if required:
        raise ModelError(
            "a Transformers model does not hold its tokenizer: give "
            "tokenizer=AutoTokenizer.from_pretrained(...)"
        )
    return None


def first_token(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The token every text starts with: BOS, or EOS where there is no BOS; -1 for none."""
    if tokenizer is None:
        return -1
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return int(next((one for one in (bos, eos) if isinstance(one, int)), -1))


def _tokenise(
    model: Model, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
) -> list[list[int]]:
    used = tokenizer_for(model, tokenizer)
    assert used is not None
    if isinstance(texts, str):
        raise DataError("texts must be a list of texts, not one text")
    first = first_token(used)
    encoded: Any = used(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    if empty := [i for i, ids in enumerate(encoded) if not len(ids)]:
        raise DataError(f"text {empty[0]} holds no token: leave empty texts out")
    start = [] if first < 0 else [first]
    return [[*start, *ids][: _context(model)] for ids in encoded]


def _context(model: Model) -> int:
    if isinstance(model, HookedTransformer):
        return model.cfg.n_ctx
    return int(getattr(model.config, "max_position_embeddings", 2048))


def _padded(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and which are real: `[batch, longest]` each."""
    if isinstance(rows, torch.Tensor):
        return rows, torch.ones_like(rows, dtype=torch.bool)
    longest = max(map(len, rows))
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows])
    lengths = torch.tensor([len(ids) for ids in rows])
    return tokens, torch.arange(longest) < lengths[:, None]


def _activations(model: Model, site: Any, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    held: list[torch.Tensor] = []

    def hold(x: torch.Tensor) -> torch.Tensor:
        held.append(x)
        return x

    handle = site.register(hold)
    try:
        if isinstance(model, HookedTransformer):
            model(
                tokens,
                return_type=None,
                prepend_bos=False,
                attention_mask=real.long(),
                stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(site.hook),
            )
        else:
            device = next(model.get_input_embeddings().parameters()).device
            options: dict[str, Any] = {"attention_mask": real.long().to(device)}
            if "use_cache" in inspect.signature(model.base_model.forward).parameters:
                options["use_cache"] = False
            model.base_model(tokens.to(device), **options)
    finally:
        handle.remove()
    return held[0]
