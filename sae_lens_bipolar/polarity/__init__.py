"""The two sides of a latent: splitting them, merging them, counting them."""

from sae_lens_bipolar.polarity.counting import census
from sae_lens_bipolar.polarity.merging import merge
from sae_lens_bipolar.polarity.splitting import is_signed, signed_latents, split, split_latents

__all__ = ["census", "is_signed", "merge", "signed_latents", "split", "split_latents"]
