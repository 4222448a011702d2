"""Signed sparse autoencoders for SAELens; importing this package registers its architectures."""

from sae_lens_bipolar.registration import ARCHITECTURES, register, unregister

__version__ = "0.1.0"

register()

__all__ = ["ARCHITECTURES", "__version__", "register", "unregister"]
