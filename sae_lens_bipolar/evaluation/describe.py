"""What single latents respond to and what they do: contexts, histograms, output tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.placement import Placement, placement, shared_hook
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.evaluation.text_reader import BATCH, TextReader
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.polarity.counting import Census

N_BINS = 41


def two_sided_latents(census: Census, n: int, max_rate: float = 0.1) -> list[int]:
    """Up to `n` latents that fire on both sides, the most balanced first.

    Balance is the firing count of the rarer side. Latents that fire on more than `max_rate` of all
    tokens are left out: their strongest contexts say little.
    """
    balance = torch.minimum(census.positive_count, census.negative_count)
    rate = census.positive_rate + census.negative_rate
    balance = torch.where(rate <= max_rate, balance, torch.zeros_like(balance))
    order = balance.argsort(descending=True, stable=True)[:n]
    return [index for index in order.tolist() if balance[index] > 0]


@torch.no_grad()
def describe_latents(
    saes: Mapping[str, SAE[Any]],
    model: HookedTransformer,
    tokens: torch.Tensor,
    latents: Mapping[str, Sequence[int]],
    census: Mapping[str, Census],
    *,
    n_contexts: int = 6,
    radius: int = 14,
    n_tokens: int = 8,
    batch_size: int = BATCH,
    reader: TextReader | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Describe latents by the text they fire on and the tokens their decoder rows favour.

    Args:
        saes: SAEs by name; all read the same hook of `model`, in shared forward passes.
        tokens: token ids, `[sequences, context_size]`; attention sinks are left out.
        latents: the indices to describe, one list per SAE.
        census: the SAEs' censuses, for the firing rates.
        n_contexts: strongest contexts per side, at most one from each sequence.
        radius: tokens shown before and after the peak.
        n_tokens: output tokens that are raised most, and as many that are lowered most.
        batch_size: sequences in one forward pass.
        reader: of this model; what it keeps of `tokens` is not read again.

    Returns:
        For each SAE and latent `index`, `positive_rate`, `negative_rate`, `histogram`, `contexts`,
        `raises` and `lowers`, ready for JSON.
    """
    indices = {name: torch.tensor(list(latents[name]), dtype=torch.long) for name in saes}
    activity = _activity(saes, reader or TextReader(model), tokens, indices, batch_size)
    described = {}
    for name, sae in saes.items():
        effect = logit_effects(model, sae.W_dec[indices[name].to(sae.device)])
        rates = census[name].positive_rate, census[name].negative_rate
        described[name] = [
            {
                "index": latent,
                "positive_rate": rates[0][latent].item(),
                "negative_rate": rates[1][latent].item(),
                "histogram": _histogram(z),
                "contexts": {
                    "positive": _contexts(model, tokens, z, 1, n_contexts, radius),
                    "negative": _contexts(model, tokens, z, -1, n_contexts, radius),
                },
                "raises": _extreme_tokens(model, effect[column], n_tokens, largest=True),
                "lowers": _extreme_tokens(model, effect[column], n_tokens, largest=False),
            }
            for column, latent in enumerate(indices[name].tolist())
            for z in (activity[name][..., column],)
        ]
    return described


@torch.no_grad()
def logit_effects(model: HookedTransformer, directions: torch.Tensor) -> torch.Tensor:
    """Direct effect on the logits, `[n, d_vocab]`, of steps along `directions`, `[n, d_model]`.

    `(w * direction) W_U`, centred over the vocabulary, where `w` is the gain of the final norm; its
    division by the norm of the residual stream is left out. For a hook whose width is not
    `d_model` there is no direct path, and the effect is empty, `[n, 0]`.
    """
    if directions.shape[-1] != model.cfg.d_model:
        return directions.new_zeros(len(directions), 0)
    gain = getattr(model.ln_final, "w", None)
    steps = directions.to(model.W_U.device, model.W_U.dtype)
    logits = (steps if gain is None else steps * gain) @ model.W_U
    return (logits - logits.mean(-1, keepdim=True)).float().cpu()


def _activity(
    saes: Mapping[str, SAE[Any]],
    reader: TextReader,
    tokens: torch.Tensor,
    indices: Mapping[str, torch.Tensor],
    size: int,
) -> dict[str, torch.Tensor]:
    """`[sequences, position, n]` activations of each SAE's chosen latents, 0 at attention sinks."""
    hook_name = shared_hook(saes.values())
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in saes}
    thresholds: dict[Placement, float] = {}
    for start in tqdm(range(0, len(tokens), size), desc="reading contexts", unit="batch"):
        batch = tokens[start : start + size]
        whole = reader.activations(batch, hook_name)
        for name, sae in saes.items():
            place = placement(sae)
            x = place.read(whole)
            norms = x.flatten(2).norm(dim=-1)
            here = place.covers(whole).expand(norms.shape)
            threshold = thresholds.setdefault(place, sink_threshold(x.flatten(2)[here]))
            keep = (here & (norms <= threshold)).unsqueeze(-1)
            z = reader.latents(name, sae, batch, x)[..., indices[name].to(sae.device)]
            parts[name].append((z * keep).cpu())
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _histogram(z: torch.Tensor) -> dict[str, list[float]]:
    """Counts of the nonzero activations in equal bins, symmetric about 0, so that 0 is mid-bin."""
    fired = z[z != 0].float()
    reach = fired.abs().max().item() if len(fired) else 1.0
    edges = torch.linspace(-reach, reach, N_BINS + 1)
    counts = torch.histogram(fired, edges).hist if len(fired) else torch.zeros(N_BINS)
    return {"edges": edges.tolist(), "counts": counts.int().tolist()}


def _contexts(
    model: HookedTransformer, tokens: torch.Tensor, z: torch.Tensor, side: int, n: int, radius: int
) -> list[dict[str, Any]]:
    """The strongest firings on one side, one per sequence, with the text around them."""
    peaks, positions = (side * z).max(dim=1)
    contexts = []
    for row in peaks.argsort(descending=True, stable=True)[:n].tolist():
        if peaks[row] <= 0:
            break
        peak = int(positions[row])
        start, stop = max(0, peak - radius), min(z.shape[1], peak + radius + 1)
        contexts.append(
            {
                "tokens": _strings(model, tokens[row, start:stop].tolist()),
                "activations": [round(value, 4) for value in z[row, start:stop].tolist()],
                "peak": peak - start,
                "sequence": row,
            }
        )
    return contexts


def _extreme_tokens(
    model: HookedTransformer, effect: torch.Tensor, n: int, largest: bool
) -> list[list[Any]]:
    top = effect.topk(min(n, len(effect)), largest=largest)
    strings = _strings(model, top.indices.tolist())
    return [
        [text, round(value, 4)] for text, value in zip(strings, top.values.tolist(), strict=True)
    ]


def _strings(model: HookedTransformer, ids: list[int]) -> list[str]:
    tokenizer = tokenizer_of(model)
    return [str(tokenizer.decode([token])) for token in ids]
