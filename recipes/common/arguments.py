"""Command lines of the recipes: `python -m recipes.PAPER.ARTEFACT`, with the same options in all.

`parse` keeps the command as it was given in `options.command`, so that a run's `environment.json`
holds a line that can be pasted into a shell.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_lens_bipolar.files.redaction import without_secrets

HIDDEN = argparse.SUPPRESS  # help of an option for this package's own use
Parser = argparse.ArgumentParser
Options = argparse.Namespace


def command(name: str, description: str | None) -> Parser:
    """A parser without options of the module `recipes.NAME`."""
    parser = Parser(
        prog=f"python -m recipes.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(recipe=name)
    return parser


def recipe_command(name: str, description: str | None, config: Path) -> Parser:
    """A parser with the options of every recipe that runs cells.

    Args:
        name: of the recipe's module below `recipes`, such as "abstopk.figure4".
        description: the text of `--help`, usually the module's docstring.
        config: the YAML file of the scales, unless `--config` names another.
    """
    parser = command(name, description)
    parser.add_argument("--scale", default="small", help="'small' (default), 'medium' or 'paper'")
    parser.add_argument("--output", type=Path, required=True, help="run directory")
    parser.add_argument("--config", type=Path, default=config, help="YAML file of the scales")
    parser.add_argument(
        "--cluster", help="'auto' or the address of a Ray cluster; without it, in sequence"
    )
    parser.add_argument(
        "--cells", default="*", help="run only the cells whose names match this shell pattern"
    )
    parser.add_argument(
        "--minutes", type=float, help="end after so many; the same command goes on (exit code 75)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/medium_cache"),
        help="activations of the scale 'medium', which recipes share",
    )
    return parser


def parse(parser: Parser, arguments: Sequence[str] | None = None) -> Options:
    """The options of `arguments` (None: of this process), and `command`, the line itself."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.command = without_secrets(f"{parser.prog} {shlex.join(given)}")
    return options
