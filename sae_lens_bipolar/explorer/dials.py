"""Dial curves: what turning a latent from one end of its range to the other does to the model.

At each value in [-1, 1] (0: the latent switched off) the curve holds two means over neutral text:

    shift   of the logits of the tokens the positive side promotes, less those the negative side
            promotes, against the unsteered model
    cost    of the next-token cross-entropy, steered less unsteered, in nats per token
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch.nn.functional import log_softmax
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.describe import two_sided_latents
from sae_lens_bipolar.explorer.directions import Ranked
from sae_lens_bipolar.explorer.latents import LatentStatistics
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.steering import EditLatents, ExtrapolationWarning, Scale, steering

VALUES = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
SEQUENCES, LENGTH = 6, 32  # of neutral text


def neutral_text(tokens: torch.Tensor) -> torch.Tensor:
    """The beginnings of a few sequences of the corpus, `[sequences, length]`."""
    return tokens[:SEQUENCES, :LENGTH]


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
    plain = _log_probabilities(model, text)
    return [
        {"latent": latent, **dial_curve(sae, model, census, outputs, text, plain, latent)}
        for latent in tqdm(latents, desc=f"turning dials {name}".strip(), unit="latent")
    ]


def dial_curve(
    sae: SAE[Any],
    model: HookedTransformer,
    census: Census,
    outputs: Ranked,
    text: torch.Tensor,
    plain: torch.Tensor,
    latent: int,
) -> dict[str, Sequence[float]]:
    """One latent's curve; `plain` are the unsteered log-probabilities of `text`."""
    raised, lowered = outputs.high[latent], outputs.low[latent]
    shift, cost = [], []
    for value in VALUES:
        with steered_dial(sae, model, census, latent, value):
            steered = _log_probabilities(model, text)
        change = steered - plain
        told = change[..., raised].mean() - change[..., lowered].mean() if len(raised) else 0.0
        shift.append(round(float(told), 4))
        cost.append(round(cost_in_nats(steered, plain, text), 4))
    return {"values": VALUES, "shift": shift, "cost": cost}


def steered_dial(
    sae: SAE[Any], model: HookedTransformer, census: Census, latent: int, value: float
) -> Any:
    """A context in which one latent is turned to `value` of its range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # the page says so itself
        edit = EditLatents(sae, {latent: value}, mode="dial", scale=Scale(census))
    return steering(model, edit)


def cost_in_nats(steered: torch.Tensor, plain: torch.Tensor, text: torch.Tensor) -> float:
    """Mean rise of the next-token cross-entropy, from log-probabilities `[n, length, d_vocab]`."""
    following = text[:, 1:, None].to(plain.device)
    return float((plain - steered)[:, :-1].gather(-1, following).mean())


def _log_probabilities(model: HookedTransformer, text: torch.Tensor) -> torch.Tensor:
    logits: Any = model(text, prepend_bos=False)
    return log_softmax(logits.float(), dim=-1)
