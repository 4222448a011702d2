"""One model reading a text for several purposes: what was read once is not read again."""

from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import SAE
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.placement import activations

# Rows in one forward pass, wherever a text is read that may be read again: activations differ in
# their last bits with the size of the batch, and a run that was stopped must end as if it were not.
BATCH = 8
_HELD = 1 << 30  # bytes


class _Sparse(NamedTuple):
    """Latents of one row: `values` at `places` of the flattened `[position, d_sae]`."""

    places: torch.Tensor
    values: torch.Tensor
    shape: torch.Size


class TextReader:
    """Activations of a model's hooks, and latents of SAEs, for rows of tokens.

    With `keeps`, rows that were read stay in memory (activations as they are, latents as pairs of
    index and value), up to `most_bytes`; later rows are then read anew each time.

    Args:
        model: the language model.
        keeps: whether anything is kept; a text that is read once needs no memory.
        most_bytes: of memory.
    """

    def __init__(
        self, model: HookedTransformer, *, keeps: bool = False, most_bytes: int = _HELD
    ) -> None:
        self.model = model
        self._free = most_bytes if keeps else 0
        self._activations: dict[tuple[str, bytes], torch.Tensor] = {}
        self._latents: dict[tuple[str, bytes], _Sparse] = {}

    def activations(self, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
        """As `placement.activations`: `[batch, position, d_in]`, or with heads."""
        keys = [(hook_name, row) for row in _rows(tokens)]
        if all(key in self._activations for key in keys):
            return torch.stack([self._activations[key] for key in keys])
        found = activations(self.model, tokens, hook_name)
        for key, row in zip(keys, found, strict=True):
            if self._affords(row.nbytes):
                self._activations[key] = row.clone()
        return found

    def keep_latents(self, name: str, tokens: torch.Tensor, latents: torch.Tensor) -> None:
        """Remember `[batch, position, d_sae]` latents of the SAE that `name` stands for."""
        if self._free <= 0:
            return
        for key, row in zip(_rows(tokens), latents, strict=True):
            flat = (row.to_dense() if row.is_sparse else row).flatten()
            index = flat.nonzero().squeeze(1)
            kept = _Sparse(index, flat[index], row.shape)
            if self._affords(kept.places.nbytes + kept.values.nbytes):
                self._latents[name, key] = kept

    def latents(
        self, name: str, sae: SAE[Any], tokens: torch.Tensor, x: torch.Tensor
    ) -> torch.Tensor:
        """`sae.encode(x)`, `[batch, position, d_sae]`, dense, on the device of the SAE.

        Args:
            name: of the SAE, the same for as long as this object is used.
            tokens: `[batch, position]`, which `x` was read from.
            x: what the SAE is given at every position.
        """
        keys = [(name, row) for row in _rows(tokens)]
        if not all(key in self._latents for key in keys):
            z = sae.encode(x.to(sae.device))
            return z.to_dense() if z.is_sparse else z
        kept = [self._latents[key] for key in keys]
        z = kept[0].values.new_zeros(len(kept), kept[0].shape.numel())
        for row, one in zip(z, kept, strict=True):
            row[one.places] = one.values
        return z.view(len(kept), *kept[0].shape)

    def _affords(self, n_bytes: int) -> bool:
        if n_bytes > self._free:
            return False
        self._free -= n_bytes
        return True


def _rows(tokens: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in tokens.cpu().long()]
