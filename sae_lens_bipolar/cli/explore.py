"""`sae-lens-bipolar explore`: a folder to search, read and compare latents in, in a browser."""

import argparse
from pathlib import Path

from sae_lens_bipolar.cli.declared import options_of
from sae_lens_bipolar.cli.parsing import add_declared
from sae_lens_bipolar.errors import ConfigError

EXAMPLES = (
    "sae-lens-bipolar explore runs/demo --serve",
    "sae-lens-bipolar explore runs/demo:abstopk --text my_texts/ --output runs/explorer",
)
_CONFIG = ("sae_lens_bipolar.explorer.config", "ExplorerConfig")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("saes", metavar="SAE", nargs="+", help="run, checkpoint, RUN:NAME, or name on the Hub")
    add("--output", type=Path, default=Path("runs/explorer"), help="folder that is written")
    add("--model", metavar="NAME", help="by default the model the SAEs were trained on")
    add_declared(parser, *_CONFIG, skip=("save_seconds",))
    add("--serve", action="store_true", help="then show it, with live panels, until Ctrl-C")
    add("--port", type=int, default=8321, help="of --serve, on 127.0.0.1")
    add("--neuronpedia", type=Path, metavar="DIR", help="also export the split for Neuronpedia")


def run(options: argparse.Namespace) -> None:
    """Build the explorer, and serve it if asked to.

    Raises:
        BipolarError: for an SAE, model, text or output that is not allowed or not there.
    """
    from sae_lens_bipolar.cli.saes import model_of, sources_of
    from sae_lens_bipolar.explorer import build, neuronpedia, server
    from sae_lens_bipolar.explorer.config import ExplorerConfig

    if options.serve:
        server.require_server()  # now rather than after the build
    given = {name: getattr(options, name, None) for name in options_of(*_CONFIG)}
    config = ExplorerConfig(**{name: value for name, value in given.items() if value is not None})
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
