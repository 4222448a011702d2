"""Where in a language model an SAE applies, as its metadata say.

`measure` and `describe_latents` ask `placement`, so that an SAE of one head, of some positions or
of flattened heads is always given what it was trained on. SAELens's own evaluation does the same
for heads but not for positions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.sparse.products import fast_products


@dataclass(frozen=True)
class Placement:
    """Hook, head and positions of an SAE, and whether its heads are made one vector first."""

    hook_name: str
    head: int | None  # the one head it reads, at a hook of heads
    positions: tuple[int | None, ...]  # start, stop and step of a slice of the positions
    flattens: bool  # heads are flattened before the SAE; otherwise it does that itself

    def read(self, activations: torch.Tensor) -> torch.Tensor:
        """What the SAE is given, at every position.

        Args:
            activations: `[batch, position, d]`, or `[batch, position, head, d_head]`.

        Returns:
            `[batch, position, d_in]`; with the head dimension if the SAE flattens by itself.
        """
        if activations.ndim < 4:
            return activations
        if self.head is not None:
            return activations[:, :, self.head]
        return activations.flatten(2) if self.flattens else activations

    def write(self, activations: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`activations` with what `read` gave replaced by `value`, at this SAE's positions."""
        if activations.ndim == 4 and self.head is not None:
            written = activations.clone()
            written[:, :, self.head] = value.to(written)
        else:
            written = value.reshape(activations.shape).to(activations)
        here = self.covers(activations)
        if here.all():
            return written
        return torch.where(_like(here, activations), written, activations)

    def covers(self, activations: torch.Tensor) -> torch.Tensor:
        """Which positions the SAE applies to, `[position]` bool."""
        here = torch.zeros(activations.shape[1], dtype=torch.bool, device=activations.device)
        here[slice(*self.positions)] = True
        return here


def placement(sae: SAE[Any]) -> Placement:
    """Where an SAE applies, read from `cfg.metadata`, as SAELens writes them while training.

    Raises:
        DataError: if the metadata do not name the hook.
    """
    known = sae.cfg.metadata
    if not known.hook_name:
        raise DataError("an SAE does not say its hook_name (cfg.metadata.hook_name)")
    return Placement(
        hook_name=str(known.hook_name),
        head=known.hook_head_index,
        positions=tuple(known.seqpos_slice or (None,)),
        flattens=sae.cfg.reshape_activations == "none",
    )


def shared_hook(saes: Iterable[SAE[Any]]) -> str:
    """The hook that all of `saes` read.

    Raises:
        DataError: if they read different hooks, or one does not say its hook.
    """
    hooks = {placement(sae).hook_name for sae in saes}
    if len(hooks) != 1:
        raise DataError(f"SAEs measured together must read one hook, found {sorted(hooks)}")
    return hooks.pop()


def activations(model: HookedTransformer, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    """`[batch, position, d_in]` at a hook, or `[batch, position, head, d_head]` at a head hook."""
    with fast_products(model.W_E.device):
        _, cache = model.run_with_cache(
            tokens,
            names_filter=[hook_name],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
            prepend_bos=False,
        )
    return cache[hook_name]


def _like(positions: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    return positions.reshape(1, -1, *(1 for _ in activations.shape[2:]))
