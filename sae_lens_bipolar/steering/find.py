"""Finding the latents of a concept: by contrast of texts, by a token, or by decoder direction.

Each ranking comes with what chance would give; on noise it says "nothing found".
"""

from collections.abc import Sequence
from math import comb
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from transformers import PreTrainedTokenizerBase

from sae_lens_bipolar.errors import ConfigError, DataError, require_choice, require_number
from sae_lens_bipolar.polarity.splitting import inference_form
from sae_lens_bipolar.steering.directions import POOLS, Pool, weights
from sae_lens_bipolar.steering.hook_points import Model
from sae_lens_bipolar.steering.ranking import Ranking, rank
from sae_lens_bipolar.steering.reading import read, tokenizer_for
from sae_lens_bipolar.steering.units import latents_of

_TOKENS = 1024  # tokens encoded at a time
_PER_TEXT = 16  # tokens of a text that a token is compared with, drawn at random


@torch.no_grad()
def find_latents(
    sae: SAE[Any],
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    tokens: Pool = "mean",
    paired: bool = False,
    n: int = 20,
    n_draws: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
    hook: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
) -> Ranking:
    """The latents that separate two sets of texts, and with which sign.

    Each text gives one value per latent, the signed mean of z over its tokens (BOS and attention
    sinks left out) or z at its last token. The score is the correlation of these values with the
    label (1 positive, 0 negative); chance is the same texts with labels shuffled. With `paired`,
    text i of one side belongs to text i of the other: the score is the cosine of the differences
    with equal ones, and chance swaps texts within pairs.

    Args:
        sae: any SAE.
        model: the model it reads.
        positive: texts with the concept, or words.
        negative: texts without it, or with its opposite.
        tokens: "mean" or "last".
        paired: whether texts come in pairs, such as antonyms.
        n, n_draws, alpha, seed: as in `rank`.
        hook: where the SAE reads, if not at `cfg.metadata.hook_name`.
        tokenizer: of a Transformers model.

    Returns:
        The ranking; `sign` is the side of the latent that belongs to the positive texts.

    Raises:
        DataError: for too few texts to tell anything from chance, or pairs that do not match.
        ModelError: if the model has no such hook.
    """
    require_choice(tokens, POOLS, "tokens")
    counts = len(positive), len(negative)
    if paired and counts[0] != counts[1]:
        raise DataError(f"pairs need as many positive as negative texts, not {counts}")
    _require_enough(counts, paired, alpha)
    sides = [
        _pooled(sae, model, texts, tokens, hook, tokenizer, batch_size)
        for texts in (positive, negative)
    ]
    return rank_contrast(*sides, paired=paired, n=n, n_draws=n_draws, alpha=alpha, seed=seed)


def rank_contrast(
    positive: torch.Tensor, negative: torch.Tensor, *, paired: bool = False, **options: Any
) -> Ranking:
    """`find_latents` for values at hand: one per text and latent, `[texts, d_sae]` each.

    Args:
        options: as in `rank`.
    """
    means = (positive.mean(0), negative.mean(0))
    if paired:

        def swap(draws: int, generator: torch.Generator) -> torch.Tensor:
            return torch.randint(2, (draws, len(positive)), generator=generator) * 2.0 - 1

        ones = torch.ones(len(positive))
        return rank(positive - negative, ones, swap, "swaps within pairs", means=means, **options)
    x = torch.cat([positive, negative])
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    centred = labels - labels.mean()

    def shuffle(draws: int, generator: torch.Generator) -> torch.Tensor:
        return centred[torch.rand(draws, len(x), generator=generator).argsort(1)]

    return rank(x - x.mean(0), centred, shuffle, "shuffles of the labels", means=means, **options)


@torch.no_grad()
def find_latents_by_token(
    sae: SAE[Any],
    model: Model,
    token: str,
    texts: Sequence[str],
    *,
    n: int = 20,
    n_draws: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
    hook: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
) -> Ranking:
    """The latents that fire, positively or negatively, on one token more than on its neighbours.

    The score compares z on the token with z on up to 16 tokens of the same texts; chance
    compares a token drawn at random from each text instead.

    Args:
        token: its text, leading space included, such as " woman".
        texts: texts that hold it; others are left out.

    Raises:
        DataError: if the text is not one token, or too few texts hold it.
    """
    used = tokenizer_for(model, tokenizer)
    assert used is not None
    ids: Any = used(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = [str(used.decode([one])) for one in ids]
        raise DataError(f"{token!r} is {len(ids)} tokens ({pieces}): give one token")
    sae, at = inference_form(sae), hook or str(sae.cfg.metadata.hook_name)
    generator = torch.Generator().manual_seed(seed)
    rows, marks = [], []
    for batch in read(model, texts, at, tokenizer=used, batch_size=batch_size):
        for x, keep, own in zip(batch.x, batch.keep, batch.tokens == ids[0], strict=True):
            here = _sample(own.to(keep.device), keep, generator)
            if here is not None:
                rows.append(_encode(sae, x[here]))
                marks.append(own[here.to(own.device)].float().cpu())
    if len(rows) < 2 or 1 / torch.tensor([len(m) for m in marks]).double().prod() > alpha:
        raise DataError(
            f"{len(rows)} texts hold {token!r} among other tokens: too few to tell a latent from "
            "chance; give more texts with it"
        )
    return rank_tokens(rows, marks, n=n, n_draws=n_draws, alpha=alpha, seed=seed)


def rank_tokens(
    rows: Sequence[torch.Tensor], marks: Sequence[torch.Tensor], **options: Any
) -> Ranking:
    """`find_latents_by_token` for values at hand.

    Args:
        rows: for each text, z of some of its tokens, `[tokens, d_sae]`.
        marks: for each text, 1 where the token is the one asked for, else 0, `[tokens]`.
        options: as in `rank`.
    """
    x, mark = torch.cat(list(rows)), torch.cat(list(marks)) > 0
    centred = [one / one.sum() - 1 / len(one) for one in marks]

    def elsewhere(draws: int, generator: torch.Generator) -> torch.Tensor:
        drawn = [
            one[torch.rand(draws, len(one), generator=generator).argsort(1)] for one in centred
        ]
        return torch.cat(drawn, 1)

    return rank(
        torch.cat([one - one.mean(0) for one in rows]),
        torch.cat(centred),
        elsewhere,
        "choices of other tokens",
        means=(x[mark].mean(0), x[~mark].mean(0)),
        **options,
    )


@torch.no_grad()
def find_latents_by_direction(
    sae: SAE[Any],
    direction: torch.Tensor,
    *,
    n: int = 20,
    n_draws: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
) -> Ranking:
    """The latents whose decoder rows lie along a direction, such as a difference in means.

    The score is the cosine; chance is a direction drawn uniformly at random. The sign is the side
    of the latent that moves x along the direction.

    Args:
        direction: `[d_in]`, of any length but 0.

    Raises:
        ConfigError: if the direction has another width, is 0, or is not finite.
    """
    v = direction.detach().flatten().float().cpu()
    if len(v) != sae.cfg.d_in or not torch.isfinite(v).all() or not v.any():
        raise ConfigError(
            f"direction must be {sae.cfg.d_in} finite numbers, not all 0, as the SAE's decoder "
            f"rows; got {len(v)}"
        )

    def anywhere(draws: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(draws, len(v), generator=generator)

    columns = sae.W_dec.detach().float().cpu().T
    return rank(
        columns, v, anywhere, "random directions", n=n, n_draws=n_draws, alpha=alpha, seed=seed
    )


def _pooled(
    sae: SAE[Any],
    model: Model,
    texts: Sequence[str],
    tokens: Pool,
    hook: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    batch_size: int,
) -> torch.Tensor:
    """One value per text and latent, float32 `[texts, d_sae]` on the CPU."""
    sae, at = inference_form(sae), hook or str(sae.cfg.metadata.hook_name)
    pooled = torch.zeros(len(texts), sae.cfg.d_sae)
    start = 0
    for batch in read(model, texts, at, tokenizer=tokenizer, batch_size=batch_size):
        weight = weights(batch, tokens).to(batch.x.device, torch.float32)
        row, column = weight.nonzero(as_tuple=True)
        for piece in range(0, len(row), _TOKENS):
            r, c = row[piece : piece + _TOKENS], column[piece : piece + _TOKENS]
            z = _encode(sae, batch.x[r, c]) * weight[r, c, None].cpu()
            pooled.index_add_(0, start + r.cpu(), z)
        start += len(weight)
    return pooled


def _encode(sae: SAE[Any], x: torch.Tensor) -> torch.Tensor:
    return latents_of(sae, x).float().cpu()


def _sample(
    own: torch.Tensor, keep: torch.Tensor, generator: torch.Generator
) -> torch.Tensor | None:
    """Positions of the token and of others of its text; None if there is none of either."""
    inside, others = (own & keep).nonzero()[:, 0], (~own & keep).nonzero()[:, 0]
    inside = inside[: _PER_TEXT // 2]
    if not len(inside) or not len(others):
        return None
    drawn = torch.randperm(len(others), generator=generator)[: _PER_TEXT - len(inside)]
    return torch.cat([inside, others[drawn.to(others.device)]])


def _require_enough(counts: tuple[int, int], paired: bool, alpha: float) -> None:
    """Raise `DataError` if the texts allow so few labellings that none could be surprising."""
    require_number(alpha, "alpha", 0, 1, exclusive=True)
    if min(counts) < 1:
        raise DataError(f"each side needs texts: got {counts[0]} positive, {counts[1]} negative")
    labellings = 2 ** counts[0] if paired else comb(sum(counts), counts[0])
    # A labelling and its opposite score the same where they are both possible.
    labellings /= 2 if counts[0] == counts[1] else 1
    if 1 / labellings > alpha:
        what = f"{counts[0]} pairs" if paired else f"{counts[0]} and {counts[1]} texts"
        raise DataError(
            f"{what} allow {labellings:.0f} labellings, so no latent can be told from chance at "
            f"alpha={alpha:g}: give more, such as 10 and 10"
        )
