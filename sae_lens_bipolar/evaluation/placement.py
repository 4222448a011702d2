"""Where in a language model an SAE applies: the one reading of its metadata.

`measure`, `describe_latents`, `bench` and the explorer all ask `placement`, so that an SAE of one
head, of some positions or of flattened heads is everywhere given what it was trained on. SAELens's
own evaluation does the same with heads, and knows no positions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.errors import DataError


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
    """Read where an SAE applies from `cfg.metadata`, as SAELens writes it while training.

    Raises:
        DataError: if it does not say its hook.
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
        DataError: if they read several, or one does not say its hook.
    """
    hooks = {placement(sae).hook_name for sae in saes}
    if len(hooks) != 1:
        raise DataError(f"SAEs measured together must read one hook, found {sorted(hooks)}")
    return hooks.pop()


def _like(positions: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    return positions.reshape(1, -1, *(1 for _ in activations.shape[2:]))
