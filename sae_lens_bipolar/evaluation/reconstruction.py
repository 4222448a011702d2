"""How well an SAE reconstructs, on held-out tokens, with and without attention sinks.

An attention-sink token is one whose activation norm at the hook exceeds `SINK_RATIO` times the
median norm of the first measured batch. A handful of such tokens carries most of the squared norm
of a residual stream, so every figure is given twice: without them (they keep their own activations
when the loss is measured, and no average includes them) and with them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ActivationError, DataError
from sae_lens_bipolar.evaluation.placement import Placement, placement, shared_hook
from sae_lens_bipolar.polarity.counting import Census, CensusCounter

SINK_RATIO = 10.0
_NO_VARIATION = 1e-10  # of x per token, below which it counts as constant; SAELens's value


@dataclass(frozen=True)
class Reconstruction:
    """Averages over tokens.

    Args:
        n_tokens: tokens averaged over.
        nmse: mean of `|x - xhat|^2 / |x|^2` (arXiv 2510.00404, section 4) over tokens with
            `|x| > 0`; 0 where there is none.
        r2: `1 - sum |x - xhat|^2 / sum |x - mean x|^2` (arXiv 2605.28149), in float64. Where all
            `x` are equal, 1 if `xhat` is right and 0 otherwise, as SAELens has it.
        l0: mean number of latents with `z != 0`.
        loss_recovered: `(CE_zero - CE_sae) / (CE_zero - CE_clean)` with zero ablation of what the
            SAE reads; NaN where ablation changes nothing.
        n_loss_tokens: next-token predictions the three cross-entropies average over.
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


def nmse(x: torch.Tensor, xhat: torch.Tensor) -> torch.Tensor:
    """`|x - xhat|^2 / |x|^2` per token, `[...]` from two tensors `[..., d_in]`.

    It is 0 where `|x| = 0`: no error is relative to nothing. `mean_nmse` leaves such tokens out.
    """
    norm = x.pow(2).sum(-1)
    return torch.where(norm > 0, (x - xhat).pow(2).sum(-1) / norm, torch.zeros_like(norm))


def mean_nmse(x: torch.Tensor, xhat: torch.Tensor) -> float:
    """Mean of `nmse` over the tokens with `|x| > 0`; 0.0 where there is none."""
    return _total(nmse(x, xhat)) / max(1, int((x.pow(2).sum(-1) > 0).sum()))


def _total(values: torch.Tensor, *dims: int) -> Any:
    """Sum in float64: a number, or a tensor if it is over `dims`. MPS has no float64, so on the
    CPU there."""
    values = (values.cpu() if values.device.type == "mps" else values).double()
    return values.sum(dims) if dims else values.sum().item()


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
    batch_size: int = 8,
) -> dict[str, Measurement]:
    """Measure SAEs that read the same hook in shared forward passes of the language model.

    Args:
        saes: SAEs by name; all with the same `cfg.metadata.hook_name`.
        model: the model they were trained on.
        tokens: held-out token ids, `[sequences, context_size]`.
        n_loss_sequences: sequences the (dearer) loss is measured on; None for all of them.
        batch_size: sequences in one forward pass.

    Raises:
        DataError: if there are no tokens, or the SAEs read different hooks.
        ActivationError: if the activations hold NaN or infinite values.
    """
    if tokens.ndim != 2 or not len(tokens):
        raise DataError(f"tokens have shape {list(tokens.shape)}; give [sequences, context_size]")
    hook_name = shared_hook(saes.values())
    for sae in saes.values():
        sae.eval()

    places = {name: placement(sae) for name, sae in saes.items()}
    sums = {name: _Sums(sae.cfg.d_sae) for name, sae in saes.items()}
    losses = {
        place: _Losses(model, place, {n: saes[n] for n, p in places.items() if p == place})
        for place in dict.fromkeys(places.values())
    }
    thresholds: dict[Placement, float] = {}
    n_loss = len(tokens) if n_loss_sequences is None else n_loss_sequences
    progress = tqdm(total=tokens.numel(), desc="measuring SAEs", unit="token")
    for start, batch in _batches(tokens, batch_size):
        whole = activations(model, batch, hook_name)
        whole = whole.to(
            torch.promote_types(whole.dtype, torch.float32)
        )  # sums of half precision lose too much
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
            for name, sae in losses_here.saes.items():
                latents = sae.encode(x)
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


def activations(model: HookedTransformer, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    """`[batch, position, d_in]` at a hook, or `[batch, position, head, d_head]` at a head hook."""
    _, cache = model.run_with_cache(
        tokens,
        names_filter=[hook_name],
        stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
        prepend_bos=False,
    )
    return cache[hook_name]


def _flat(x: torch.Tensor) -> torch.Tensor:
    """`[batch, position, d_in]` with any head dimension folded in."""
    return x.flatten(2)


class _Averages:
    """Running sums behind nMSE, R^2 and L0."""

    def __init__(self) -> None:
        self.n_tokens, self.n_nonzero, self.nmse, self.l0 = 0, 0, 0.0, 0.0
        self.error, self.variation = 0.0, 0.0
        self.mean: torch.Tensor | None = None

    def add(self, x: torch.Tensor, xhat: torch.Tensor, l0: torch.Tensor) -> None:
        if not len(x):
            return
        self.n_nonzero += int((x.pow(2).sum(-1) > 0).sum())
        self.nmse += _total(nmse(x, xhat))
        self.l0 += _total(l0)
        self.error += _total((x - xhat).pow(2))
        # |x - mean|^2 is summed about this batch's own mean, then moved to the common one: the
        # difference of two large sums would be lost where the mean is large.
        n, mean = len(x), _total(x, 0).cpu() / len(x)
        self.variation += _total((x - mean.to(x)).pow(2)) - n * _total(
            (_total(x - mean.to(x), 0) / n).pow(2)
        )
        before = mean if self.mean is None else self.mean
        both = self.n_tokens + n
        self.variation += _total((mean - before).pow(2)) * self.n_tokens * n / both
        self.mean = before + (mean - before) * (n / both)
        self.n_tokens = both

    def result(self) -> dict[str, Any]:
        n = max(1, self.n_tokens)
        if self.variation / n < _NO_VARIATION:
            r2 = 1.0 if self.error / n < _NO_VARIATION else 0.0
        else:
            r2 = 1.0 - self.error / self.variation
        return {
            "n_tokens": self.n_tokens,
            "nmse": self.nmse / max(1, self.n_nonzero),
            "r2": r2,
            "l0": self.l0 / n,
        }


class _Sums:
    """One SAE's running sums, with and without sinks."""

    def __init__(self, d_sae: int) -> None:
        self.without, self.everything = _Averages(), _Averages()
        self.census = CensusCounter(d_sae)

    def add(
        self,
        x: torch.Tensor,
        xhat: torch.Tensor,
        latents: torch.Tensor,
        here: torch.Tensor,
        keep: torch.Tensor,
    ) -> None:
        """Count tokens: `here` are those the SAE applies to, `keep` those of them not sinks."""
        l0 = (latents != 0).sum(-1)
        self.everything.add(x[here], xhat[here], l0[here])
        self.without.add(x[keep], xhat[keep], l0[keep])
        self.census.add(latents[keep])


@dataclass
class _Losses:
    """Per-token cross-entropies of the clean, zero-ablated and SAE-patched model."""

    model: HookedTransformer
    place: Placement
    saes: Mapping[str, SAE[Any]]
    totals: dict[tuple[str, bool], float] = field(default_factory=dict)
    counts: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def add(
        self, tokens: torch.Tensor, whole: torch.Tensor, here: torch.Tensor, keep: torch.Tensor
    ) -> None:
        """Add sequences.

        Args:
            tokens: `[batch, position]`.
            whole: the activations at the hook, whatever part of them the SAEs read.
            here: positions the SAEs apply to, `[batch, position]` bool.
            keep: those of them that are not sinks.
        """
        # The loss at a position is that of predicting the next token.
        counted = {True: keep[:, :-1], False: here[:, :-1]}
        loss_with, x = self._loss_with(tokens), self.place.read(whole)
        losses = {
            "clean": loss_with(whole),
            "zero": loss_with(self.place.write(whole, torch.zeros_like(x))),
        }
        for name, sae in self.saes.items():
            xhat = sae(x)
            losses[f"sae:{name}"] = loss_with(self.place.write(whole, xhat))
            without = losses[f"sae:{name}"]
            if not keep.all():
                kept = keep.reshape(*keep.shape, *(1 for _ in x.shape[2:]))
                without = loss_with(self.place.write(whole, torch.where(kept, xhat, x)))
            self._note((f"sae:{name}", True), without[counted[True]])
        for without_sinks, which in counted.items():
            self.counts[without_sinks] += int(which.sum())
            for model, loss in losses.items():
                if not (without_sinks and model.startswith("sae:")):
                    self._note((model, without_sinks), loss[which])

    def _loss_with(self, tokens: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Next-token losses `[batch, position - 1]` as a function of the value at the hook.

        A pass begins at the hook's own block, because nothing before it matters.
        """
        options: dict[str, Any] = {"return_type": "loss", "loss_per_token": True}
        block = re.match(r"blocks\.(\d+)\.", self.place.hook_name)
        start, layer = tokens, None if block is None else int(block[1])
        if layer is None:
            options["prepend_bos"] = False
        elif self.place.hook_name == f"blocks.{layer}.hook_resid_post":
            options |= {"start_at_layer": layer + 1, "tokens": tokens}
            return lambda value: self.model(value.to(self.model.cfg.dtype), **options)
        else:
            start = activations(self.model, tokens, f"blocks.{layer}.hook_resid_pre")
            options |= {"start_at_layer": layer, "tokens": tokens}

        def loss(value: torch.Tensor) -> torch.Tensor:
            hooks: list[Any] = [(self.place.hook_name, partial(_patch, value=value))]
            return self.model.run_with_hooks(start, fwd_hooks=hooks, **options)

        return loss

    def _note(self, key: tuple[str, bool], loss: torch.Tensor) -> None:
        self.totals[key] = self.totals.get(key, 0.0) + _total(loss)

    def result(self, name: str, without_sinks: bool) -> dict[str, Any]:
        clean, zero, patched = (
            self.totals[model, without_sinks] for model in ("clean", "zero", f"sae:{name}")
        )
        recovered = (zero - patched) / (zero - clean) if zero != clean else float("nan")
        return {"loss_recovered": recovered, "n_loss_tokens": self.counts[without_sinks]}


def _patch(activations: torch.Tensor, hook: Any, value: torch.Tensor) -> torch.Tensor:
    return value.to(activations)
