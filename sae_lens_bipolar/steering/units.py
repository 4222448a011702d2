"""Units in which a latent is turned: its own range, raw latent units, or the size of the change.

own    multiples of the largest |z| seen on that side, attention sinks left out
raw    z itself
norm   |change of x| over the median |x|: the axis on which methods compare
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from sae_lens.saes.sae import SAE
from transformers import PreTrainedTokenizerBase

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.polarity.counting import Census, CensusCounter
from sae_lens_bipolar.polarity.splitting import inference_form
from sae_lens_bipolar.steering.hook_points import Model
from sae_lens_bipolar.steering.reading import Text, read

Unit = Literal["own", "raw", "norm"]
UNITS = ("own", "raw", "norm")


class ExtrapolationWarning(UserWarning):
    """A latent is turned to a side on which it was never seen."""


@dataclass(frozen=True, eq=False)
class Scale:
    """How far latents go on each side, and how large activations are.

    Args:
        census: of the SAE's latents, attention sinks left out; `measure`'s will do.
        typical: an activation of median norm, as the hook gives it; only unit "norm" needs it.
    """

    census: Census
    typical: torch.Tensor | None = None

    def reach(self, latent: int, side: int) -> tuple[float, bool]:
        """The largest `|z|` of a latent on `side` (1 or -1), and whether it is borrowed.

        A side that never fired borrows the other side's.

        Raises:
            ConfigError: if the latent never fired at all.
        """
        sides = (self.census.positive_max, self.census.negative_max)
        own, other = (float(one[latent]) for one in (sides if side > 0 else sides[::-1]))
        if own == other == 0:
            raise ConfigError(
                f"latent {latent} fired on none of {self.census.n_tokens} tokens, so it has no "
                "unit of its own: use unit='raw' or 'norm', another latent, or more text"
            )
        return (own, False) if own > 0 else (other, True)

    def norm_per_unit(self, sae: SAE[Any], latents: list[int]) -> torch.Tensor:
        """`|decode(z + e_i) - decode(z)| / |x|` for each latent, `[n]`, at the typical `x`.

        Raises:
            ConfigError: if no typical activation is known.
        """
        if self.typical is None:
            raise ConfigError(
                "unit='norm' needs an activation of median norm: make the scale with measure_scale"
            )
        x = self.typical.to(sae.device, sae.dtype)
        n = len(latents)
        z = torch.zeros(n + 1, sae.cfg.d_sae, device=sae.device, dtype=sae.dtype)
        z[torch.arange(1, n + 1), torch.tensor(latents)] = 1
        with torch.no_grad():
            # Sets what decoding with a normalisation per token needs.
            sae.process_sae_in(x.expand(n + 1, *x.shape))
            decoded = sae.decode(z).flatten(1)
        return (decoded[1:] - decoded[0]).norm(dim=-1).cpu().double() / x.norm().item()


@torch.no_grad()
def measure_scale(
    sae: SAE[Any],
    model: Model,
    text: Text,
    *,
    hook: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
) -> Scale:
    """The census of an SAE and an activation of median norm, both without attention sinks.

    Args:
        sae: any SAE.
        model: the model it reads.
        text: texts, or token ids `[sequences, context_size]`.
        hook: where it reads, if not at `sae.cfg.metadata.hook_name`.
        tokenizer: of a Transformers model, for texts.

    Raises:
        ModelError: if the model has no such hook, or texts need a tokenizer.
        DataError: if there is no text.
    """
    sae = inference_form(sae)
    counter = CensusCounter(sae.cfg.d_sae)
    norms, kept = [], []
    hook = hook or str(sae.cfg.metadata.hook_name)
    for batch in read(model, text, hook, tokenizer=tokenizer, batch_size=batch_size):
        x = batch.x[batch.keep]
        counter.add(latents_of(sae, x))
        length = x.flatten(1).float().norm(dim=-1)
        # Of each batch, the token in the middle: the middle one of these is typical of all.
        middle = length.argsort()[len(length) // 2]
        norms.append(length[middle])
        kept.append(x[middle])
    order = torch.stack(norms).argsort()
    return Scale(counter.result(), kept[int(order[len(order) // 2])].cpu())


def latents_of(sae: SAE[Any], x: torch.Tensor) -> torch.Tensor:
    """Dense latents `[n, d_sae]` of activations `[n, d_in]` or, by head, `[n, heads, d_head]`."""
    if x.ndim == 3 and not sae.hook_z_reshaping_mode:
        x = x.flatten(1)
    z = sae.encode(x.to(sae.device))
    return z.to_dense() if z.is_sparse else z
