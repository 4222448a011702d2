"""How well an SAE reconstructs, on held-out tokens, with and without attention sinks.

An attention-sink token is one whose activation norm at the hook exceeds `SINK_RATIO` times the
median norm of the first measured batch. A handful of such tokens carries most of the squared norm
of a residual stream, so every measure is given twice: without them (no average includes them, and
they keep their own activations when the loss is measured) and with them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.architectures.training.start import SINK_RATIO
from sae_lens_bipolar.errors import ActivationError, DataError
from sae_lens_bipolar.evaluation.averages import Averages
from sae_lens_bipolar.evaluation.loss import Losses
from sae_lens_bipolar.evaluation.placement import Placement, placement, shared_hook
from sae_lens_bipolar.evaluation.text_reader import BATCH, TextReader
from sae_lens_bipolar.inputs.trained_on import require_fits
from sae_lens_bipolar.polarity.counting import Census, CensusCounter
from sae_lens_bipolar.sparse.products import fast_products


@dataclass(frozen=True)
class Reconstruction:
    """Averages over tokens.

    Args:
        n_tokens: number of tokens averaged over.
        nmse: mean of `|x - xhat|^2 / |x|^2` (arXiv 2510.00404, section 4) over tokens with
            `|x| > 0`; 0 if there are none.
        r2: `1 - sum |x - xhat|^2 / sum |x - mean x|^2` (arXiv 2605.28149), in float64. Where all
            `x` are equal, 1 if `xhat` is right and 0 otherwise, as in SAELens.
        l0: mean number of latents with `z != 0`.
        loss_recovered: `(CE_zero - CE_sae) / (CE_zero - CE_clean)` with zero ablation of what the
            SAE reads; NaN if ablation changes nothing.
        n_loss_tokens: number of next-token predictions that the three cross-entropies average over.
    """

    n_tokens: int
    nmse: float
    r2: float
    l0: float
    loss_recovered: float
    n_loss_tokens: int


@dataclass(frozen=True)
class Measurement:
    """What one SAE does on held-out tokens; the census and dead latents leave sinks out."""

    without_sinks: Reconstruction
    with_sinks: Reconstruction
    census: Census

    @property
    def dead_fraction(self) -> float:
        """Share of latents that fired on none of `census.n_tokens` tokens."""
        return 1.0 - self.census.alive.double().mean().item()

    @property
    def bipolar_fraction(self) -> float:
        """Share of live latents that fired on both sides."""
        return self.census.bipolar_fraction


def sink_threshold(x: torch.Tensor) -> float:
    """Norm above which a token is an attention sink: `SINK_RATIO` times the median of `|x|`."""
    return SINK_RATIO * x.norm(dim=-1).median().item()


@torch.no_grad()
def measure(
    saes: Mapping[str, SAE[Any]],
    model: HookedTransformer,
    tokens: torch.Tensor,
    *,
    n_loss_sequences: int | None = None,
    batch_size: int = BATCH,
    reader: TextReader | None = None,
) -> dict[str, Measurement]:
    """Measure SAEs that read the same hook in shared forward passes of the language model.

    Args:
        saes: SAEs by name; all with the same `cfg.metadata.hook_name`.
        model: the model they were trained on.
        tokens: held-out token ids, `[sequences, context_size]`.
        n_loss_sequences: sequences that the loss, which is slow, is measured on; None for all.
        batch_size: sequences in one forward pass.
        reader: of this model, to keep what is read for `describe_latents` and others.

    Raises:
        DataError: if there are no tokens, or the SAEs read different hooks.
        ModelError: if an SAE cannot belong to the model that its metadata name.
        ActivationError: if the activations hold NaN or infinite values.
    """
    if tokens.ndim != 2 or not len(tokens):
        raise DataError(f"tokens have shape {list(tokens.shape)}; give [sequences, context_size]")
    hook_name = shared_hook(saes.values())
    for name, sae in saes.items():
        require_fits(sae.cfg.metadata, sae.cfg.d_in, name)
        sae.eval()

    reader = reader or TextReader(model)
    places = {name: placement(sae) for name, sae in saes.items()}
    sums = {name: _Sums(sae.cfg.d_sae) for name, sae in saes.items()}
    losses = {
        place: Losses(model, place, {n: saes[n] for n, p in places.items() if p == place})
        for place in dict.fromkeys(places.values())
    }
    thresholds: dict[Placement, float] = {}
    n_loss = len(tokens) if n_loss_sequences is None else n_loss_sequences
    progress = tqdm(total=tokens.numel(), desc="measuring SAEs", unit="token")
    for start, batch in _batches(tokens, batch_size):
        whole = reader.activations(batch, hook_name)
        # Sums in half precision lose too much.
        whole = whole.to(torch.promote_types(whole.dtype, torch.float32))
        if not torch.isfinite(whole).all():
            raise ActivationError(
                f"sequences {start} to {start + len(batch) - 1} give NaN or infinite activations "
                f"at {hook_name}; run the language model in float32 or bfloat16"
            )
        for place, losses_here in losses.items():
            x = place.read(whole)
            norms = _flat(x).norm(dim=-1)
            here = place.covers(whole).expand(norms.shape)
            threshold = thresholds.setdefault(place, sink_threshold(_flat(x)[here]))
            keep = here & (norms <= threshold)
            with fast_products(whole.device):
                for name, sae in losses_here.saes.items():
                    latents = sae.encode(x)
                    reader.keep_latents(name, batch, latents)
                    sums[name].add(_flat(x), _flat(sae.decode(latents)), latents, here, keep)
                if start < n_loss:
                    n = n_loss - start
                    losses_here.add(batch[:n], whole[:n], here[:n], keep[:n])
        progress.update(batch.numel())
    progress.close()
    return {
        name: Measurement(
            without_sinks=Reconstruction(
                **total.without.result(), **losses[places[name]].result(name, True)
            ),
            with_sinks=Reconstruction(
                **total.everything.result(), **losses[places[name]].result(name, False)
            ),
            census=total.census.result(),
        )
        for name, total in sums.items()
    }


def _batches(tokens: torch.Tensor, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(tokens), size):
        yield start, tokens[start : start + size]


def _flat(x: torch.Tensor) -> torch.Tensor:
    """`[batch, position, d_in]` with any head dimension folded in."""
    return x.flatten(2)


class _Sums:
    """One SAE's running sums, with and without sinks."""

    def __init__(self, d_sae: int) -> None:
        self.without, self.everything = Averages(), Averages()
        self.census = CensusCounter(d_sae)

    def add(
        self,
        x: torch.Tensor,
        xhat: torch.Tensor,
        latents: torch.Tensor,
        here: torch.Tensor,
        keep: torch.Tensor,
    ) -> None:
        """Count the tokens of `here`, which the SAE applies to; those of `keep` are not sinks."""
        l0 = (latents != 0).sum(-1)
        self.everything.add(x[here], xhat[here], l0[here])
        self.without.add(x[keep], xhat[keep], l0[keep])
        self.census.add(latents[keep])
