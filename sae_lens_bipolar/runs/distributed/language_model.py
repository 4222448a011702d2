"""The language model in parallel: each rank runs its part of every batch of sequences."""

from collections.abc import Callable
from functools import partial

import torch
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_bipolar.runs.distributed.ranks import Ranks


def share_language_model(store: ActivationsStore, ranks: Ranks) -> None:
    """Let each rank run the language model on its own part of every batch of sequences.

    All ranks read the same rows of tokens, and mix the same activations with the same random
    numbers, so that a training batch is that of one process.
    """
    alone = store.get_multi_hook_activations
    store.get_multi_hook_activations = partial(_shared, store, alone, ranks)  # type: ignore[method-assign]


@torch.no_grad()
def _shared(
    store: ActivationsStore,
    alone: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    ranks: Ranks,
    batch_tokens: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """SAELens's `get_multi_hook_activations`: by hook, `[sequences, positions, d_in]`."""
    n = len(batch_tokens)
    mine = batch_tokens[ranks.own(n)]
    # A rank without a sequence runs the first, to know shapes and dtype, and gives none of it.
    found = alone(mine if len(mine) else batch_tokens[:1])
    return {
        hook: ranks.gather_uneven(part[: len(mine)].to(store.device), 0, n)
        for hook, part in found.items()
    }
