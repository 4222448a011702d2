"""Forward passes of Figure 1 that share what they have in common, by a cache of keys and values."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer

from recipes.abstopk.figure1_words import TEMPLATES
from sae_lens_bipolar.evaluation.placement import activations
from sae_lens_bipolar.files.atomic import atomic_path
from sae_lens_bipolar.steering.reading import first_token

try:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as KeyValueCache
except ImportError:  # TransformerLens 2
    from transformer_lens.past_key_value_caching import (  # type: ignore[no-redef]
        HookedTransformerKeyValueCache as KeyValueCache,
    )

READS = ("at the word", "later")  # where a word is read


def in_chunks(folder: Path, n: int, make: Callable[[int], dict[str, torch.Tensor]]) -> Any:
    """What `make` gives for 0 to n - 1, each on disk as soon as it is there and not made again.

    Returns:
        For each name of a tensor, the tensors of all chunks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[torch.Tensor]] = {}
    for i in range(n):
        file = folder / f"{i:04d}.safetensors"
        if not file.exists():
            with atomic_path(file) as scratch:
                save_file({name: one.contiguous() for name, one in make(i).items()}, scratch)
        for name, one in load_file(file).items():
            found.setdefault(name, []).append(one)
    return found


@torch.no_grad()
def read_words(
    model: HookedTransformer, tokenizer: Any, layer: int, words: Sequence[str], template: int
) -> torch.Tensor:
    """Activations after block `layer` of words in a template, `[words, reads, d_in]`.

    The template differs only at the word, so what stands before it is run once.
    """
    ids = torch.tensor(
        [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    )
    before, after = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in TEMPLATES[template]
    )
    cache = _filled(model, torch.tensor([[first_token(tokenizer), *before]]), layer + 1)
    _repeat(cache, len(words))
    rows = torch.cat([ids, torch.tensor([after[:2]]).expand(len(words), -1)], 1)
    x = model(rows, prepend_bos=False, past_kv_cache=cache, stop_at_layer=layer + 1)
    return torch.stack([x[:, 0], x[:, -1]], 1)


class Contexts:
    """Contexts of one length, whose last token alone is edited."""

    @torch.no_grad()
    def __init__(self, model: HookedTransformer, layer: int, tokens: torch.Tensor) -> None:
        self.model, self.layer, self.n = model, layer, len(tokens)
        self.x = activations(model, tokens, f"blocks.{layer}.hook_resid_post")[:, -1]
        self.cache = _filled(model, tokens[:, :-1], None)
        self._copies = 1

    @torch.no_grad()
    def final(self, changed: torch.Tensor) -> torch.Tensor:
        """The normed last activation of each context, `[copies, contexts, d_model]`.

        Args:
            changed: what stands after block `layer` at the last token, `[copies, contexts, d_in]`.
        """
        copies = len(changed)
        if copies != self._copies:
            _repeat(self.cache, copies, first=self.n)
            self._copies = copies
        x = changed.flatten(0, 1)[:, None]
        for i in range(self.layer + 1, self.model.cfg.n_layers):
            x = self.model.blocks[i](x, past_kv_cache_entry=self.cache[i])
        return self.model.ln_final(x)[:, 0].view(copies, self.n, -1)

    def mean_logit(self, final: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Mean logit of some tokens, over them and the contexts, `[copies]`."""
        head = self.model.W_U[:, token_ids].mean(1)
        bias = self.model.b_U[token_ids].mean()
        return (final @ head).mean(-1) + bias


def _filled(model: HookedTransformer, tokens: torch.Tensor, stop: int | None) -> Any:
    """A frozen cache of the keys and values of rows of tokens, of the blocks before `stop`."""
    cache = KeyValueCache.init_cache(model.cfg, model.cfg.device, len(tokens))
    model(tokens, prepend_bos=False, past_kv_cache=cache, stop_at_layer=stop, return_type=None)
    cache.freeze()
    return cache


def _repeat(cache: Any, copies: int, first: int = 1) -> None:
    """Make a cache hold `copies` of its first rows, one after the other."""
    for entry in cache.entries:
        entry.past_keys = entry.past_keys[:first].repeat(copies, 1, 1, 1)
        entry.past_values = entry.past_values[:first].repeat(copies, 1, 1, 1)
    cache.previous_attention_mask = cache.previous_attention_mask[:first].repeat(copies, 1)
