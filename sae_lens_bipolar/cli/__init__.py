"""The command `sae-lens-bipolar`."""

from sae_lens_bipolar.cli.main import main

__all__ = ["main"]
