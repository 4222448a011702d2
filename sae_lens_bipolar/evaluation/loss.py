"""Loss recovered: how well the model predicts when an SAE's reconstruction replaces its input."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.averages import total
from sae_lens_bipolar.evaluation.placement import Placement, activations


@dataclass
class Losses:
    """Per-token cross-entropies of the clean, zero-ablated and SAE-patched model."""

    model: HookedTransformer
    place: Placement
    saes: Mapping[str, SAE[Any]]
    totals: dict[tuple[str, bool], float] = field(default_factory=dict)
    counts: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def add(
        self, tokens: torch.Tensor, whole: torch.Tensor, here: torch.Tensor, keep: torch.Tensor
    ) -> None:
        """Add the losses of a batch of sequences.

        Args:
            tokens: `[batch, position]`.
            whole: the activations at the hook, whatever part of them the SAEs read.
            here: positions the SAEs apply to, `[batch, position]` bool.
            keep: those of `here` that are not attention sinks.
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

        A pass begins at the hook's own block: nothing before it changes.
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
        self.totals[key] = self.totals.get(key, 0.0) + total(loss)

    def result(self, name: str, without_sinks: bool) -> dict[str, Any]:
        clean, zero, patched = (
            self.totals[model, without_sinks] for model in ("clean", "zero", f"sae:{name}")
        )
        recovered = (zero - patched) / (zero - clean) if zero != clean else float("nan")
        return {"loss_recovered": recovered, "n_loss_tokens": self.counts[without_sinks]}


def _patch(activations: torch.Tensor, hook: Any, value: torch.Tensor) -> torch.Tensor:
    return value.to(activations)
