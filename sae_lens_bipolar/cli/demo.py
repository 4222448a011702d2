"""`sae-lens-bipolar demo`: the main job on a real model, in one command."""

import argparse
from pathlib import Path

from sae_lens_bipolar.cli.declared import options_of
from sae_lens_bipolar.cli.parsing import add_declared
from sae_lens_bipolar.files.names import EXPLORER

EXAMPLES = (
    "sae-lens-bipolar demo",
    "sae-lens-bipolar demo --d-sae 2304 --training-tokens 61440 --output runs/small",
)
_CONFIG = ("sae_lens_bipolar.cli.demonstration", "DemoConfig")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="run directory")
    add_declared(parser, *_CONFIG)


def run(options: argparse.Namespace) -> None:
    """Train, measure, draw.

    Raises:
        BipolarError: as `demonstration.run_demo`.
    """
    from sae_lens_bipolar.cli.demonstration import DemoConfig, run_demo

    given = {name: getattr(options, name) for name in options_of(*_CONFIG)}
    config = DemoConfig(**{name: value for name, value in given.items() if value is not None})
    print(f"page: {run_demo(config, options.output)}")
    explorer = options.output / EXPLORER / "index.html"
    if explorer.is_file():
        print(f"explorer: {explorer}")
