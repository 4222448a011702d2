"""The explorer: search, read, compare and steer the two sides of latents, in a browser.

`build` streams a corpus once and writes a static folder that opens from disk; `serve` shows the
same folder with live panels.
"""

from sae_lens_bipolar.explorer.build import ExplorerConfig, build

__all__ = ["ExplorerConfig", "build"]
