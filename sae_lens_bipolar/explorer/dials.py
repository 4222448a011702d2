"""Dial curves: what turning a latent from one end of its range to the other does to the model.

At each value in [-1, 1] (0: the latent switched off) the curve holds two means over neutral text:

    shift   of the logits of the tokens the positive side promotes, less those the negative side
            promotes, against the unsteered model
    cost    of the next-token cross-entropy, steered less unsteered, in nats per token

What the model computes before the edited block is the same at every value, and is computed once;
from there on the values of a latent are rows of one batch.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch.nn.functional import log_softmax
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.describe import two_sided_latents
from sae_lens_bipolar.evaluation.placement import activations, placement
from sae_lens_bipolar.explorer.directions import Ranked
from sae_lens_bipolar.explorer.latents import LatentStatistics
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.steering import EditLatents, ExtrapolationWarning, Scale, steering
from sae_lens_bipolar.steering.hook_points import find_site

VALUES = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
LENGTH = 32  # tokens of a neutral text
_ELEMENTS = 1 << 26  # logits held at a time: 256 MiB


def neutral_text(tokens: torch.Tensor, sequences: int) -> torch.Tensor:
    """The beginnings of the corpus's first sequences, `[sequences, length]`."""
    return tokens[:sequences, :LENGTH]


def census_of(statistics: LatentStatistics, n_tokens: int) -> Census:
    """The statistics as a census."""
    mean = statistics.total / statistics.count.clamp(min=1)
    return Census(
        n_tokens,
        *statistics.count.unbind(),
        *mean.unbind(),
        *statistics.largest.double().unbind(),
    )


@torch.no_grad()
def dial_curves(
    sae: SAE[Any],
    model: HookedTransformer,
    census: Census,
    outputs: Ranked,
    text: torch.Tensor,
    n: int,
    name: str = "",
) -> list[dict[str, Any]]:
    """The curves of the `n` most balanced two-sided latents; of one-sided ones if none is."""
    latents = two_sided_latents(census, n)
    if not latents and n:
        strongest = census.positive_count.argsort(descending=True, stable=True)
        latents = [i for i in strongest[:n].tolist() if census.positive_count[i] > 0]
    if not latents:
        return []
    read = reader(model, placement(sae).hook_name, text)
    plain = read(1)
    curves = []
    for latent in tqdm(latents, desc=f"turning dials {name}".strip(), unit="latent"):
        raised, lowered = outputs.high[latent], outputs.low[latent]
        shift, cost = [], []
        for steered in _turned(sae, model, census, latent, read, plain):
            change = steered - plain
            told = change[..., raised].mean() - change[..., lowered].mean() if len(raised) else 0.0
            shift.append(round(float(told), 4))
            cost.append(round(cost_in_nats(steered, plain, text), 4))
        curves.append({"latent": latent, "values": VALUES, "shift": shift, "cost": cost})
    return curves


def _turned(
    sae: SAE[Any],
    model: HookedTransformer,
    census: Census,
    latent: int,
    read: Callable[[int], torch.Tensor],
    plain: torch.Tensor,
) -> Iterator[torch.Tensor]:
    """Log-probabilities shaped as `plain`, one for each of `VALUES`."""
    size = max(1, _ELEMENTS // plain.numel())
    for first in range(0, len(VALUES), size):
        values = VALUES[first : first + size]
        with steered_dial(sae, model, census, latent, values, plain.shape[:2]):
            yield from read(len(values)).chunk(len(values))


@contextmanager
def steered_dial(
    sae: SAE[Any],
    model: HookedTransformer,
    census: Census,
    latent: int,
    values: Sequence[float],
    text: Sequence[int],
) -> Iterator[None]:
    """A context for a text given once per value, one below the other: in each, `latent` is turned.

    Args:
        values: shares of the latent's range.
        text: sequences and length of the text.
    """
    with ExitStack() as stack:
        for i, value in enumerate(values):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExtrapolationWarning)  # the page says so itself
                edit = EditLatents(sae, {latent: value}, mode="dial", scale=Scale(census))
            rows = torch.zeros(len(values), *text, dtype=torch.bool)
            rows[i] = True
            stack.enter_context(steering(model, edit, positions=rows.flatten(0, 1)))
        yield


def cost_in_nats(steered: torch.Tensor, plain: torch.Tensor, text: torch.Tensor) -> float:
    """Mean rise of the next-token cross-entropy, from log-probabilities `[n, length, d_vocab]`."""
    following = text[:, 1:, None].to(plain.device)
    return float((plain - steered)[:, :-1].gather(-1, following).mean())


def reader(
    model: HookedTransformer, hook_name: str, text: torch.Tensor
) -> Callable[[int], torch.Tensor]:
    """A pass over a text, given several times, that gives log-probabilities, from the hook on.

    The function takes how many times the text is given, one below the other, and returns
    `[times * n, length, d_vocab]`.
    """
    layer = find_site(model, hook_name).layer
    if layer is None or model.cfg.positional_embedding_type == "shortformer":
        given, start = text, None  # blocks of a shortformer need the positions as well
    else:
        given, start = activations(model, text, f"blocks.{layer}.hook_resid_pre"), layer

    def read(times: int) -> torch.Tensor:
        rows = given.repeat(times, *(1 for _ in given.shape[1:]))
        logits: Any = model(rows, prepend_bos=False, start_at_layer=start)
        return log_softmax(logits.float(), dim=-1)

    return read
