"""Difference in means: the direction between two sets of texts."""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from sae_lens_bipolar.architectures.training.precision import in_float64
from sae_lens_bipolar.errors import DataError, require_choice
from sae_lens_bipolar.steering.hook_points import Model
from sae_lens_bipolar.steering.reading import Batch, read

Pool = Literal["mean", "last"]
POOLS = ("mean", "last")


def difference_in_means(
    model: Model,
    texts_a: Sequence[str],
    texts_b: Sequence[str],
    hook: str,
    tokens: Pool = "mean",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
) -> torch.Tensor:
    """`mean_a - mean_b` of activations at a hook (DiM of arXiv 2510.00404; arXiv 2406.11717).

    Every text counts the same. BOS, padding and attention sinks are left out.

    Args:
        model: a HookedTransformer or a Transformers model.
        texts_a: texts the direction points to.
        texts_b: texts it points away from.
        hook: TransformerLens hook name.
        tokens: "mean" over the tokens of a text, or its "last".
        tokenizer: of a Transformers model.

    Returns:
        `[d_in]`; at hook_z `[heads, d_head]`.

    Raises:
        ModelError: if the model has no such hook, or needs a tokenizer.
        DataError: if there is no text.
    """
    require_choice(tokens, POOLS, "tokens")
    means = []
    for texts in (texts_a, texts_b):
        batches = read(model, texts, hook, tokenizer=tokenizer, batch_size=batch_size)
        rows = [_pooled(batch, tokens) for batch in batches]
        means.append(torch.cat(rows).mean(0))
    return (means[0] - means[1]).to(torch.promote_types(means[0].dtype, torch.float32))


def weights(batch: Batch, tokens: Pool) -> torch.Tensor:
    """How much each token counts for its text, `[batch, position]`; each row sums to 1.

    Raises:
        DataError: if a text has no token but BOS and attention sinks.
    """
    keep = batch.keep
    if not keep.any(-1).all():
        raise DataError("a text has no token but its first and attention sinks: leave it out")
    if tokens == "last":
        # The last column that is kept.
        keep = keep & (keep.flip(-1).cumsum(-1).flip(-1) == 1)
    share = in_float64(keep)
    return share / share.sum(-1, keepdim=True)


def _pooled(batch: Batch, tokens: Pool) -> torch.Tensor:
    found = torch.einsum("bp,bp...->b...", weights(batch, tokens), in_float64(batch.x))
    return found.float().to(batch.x.device)
