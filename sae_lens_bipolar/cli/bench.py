"""`sae-lens-bipolar bench`: SAEBench's suites on SAEs, signed and as their polarity split.

First it says what each suite needs and what is missing. A stopped run continues with the same
command.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_bipolar.cli.declared import options_of
from sae_lens_bipolar.cli.parsing import add_declared
from sae_lens_bipolar.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sae_lens_bipolar.saebench.config import BenchConfig

EXIT_NOT_RUN = 3  # some suites gave no number; the rest is there
EXAMPLES = (
    "sae-lens-bipolar bench runs/demo --suites absorption,core --scale small \\",
    "    --core-dataset sotu --output runs/demo/bench",
    "sae-lens-bipolar bench --help-all   # and the options of every suite",
)
_CONFIG = ("sae_lens_bipolar.saebench.config", "BenchConfig")
_COMMON = ("sae_lens_bipolar.saebench.options", "CommonOptions")
SCALES = ("full", "small")  # of `saebench.config`


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of `BenchConfig`; those not given keep the scale's value."""
    add = parser.add_argument
    add("saes", nargs="+", metavar="SAE", help=_SAES)
    add("--output", type=Path, required=True, metavar="DIR", help="results, caches and logs")
    add("--config", type=Path, metavar="FILE", help="YAML file of these options; options win")
    add("--scale", choices=SCALES, help="SAEBench's own sizes (full, default), or minutes on a CPU")
    add("--help-all", action=_HelpAll, help="also the options of every suite")
    add_declared(parser, *_COMMON)
    suites = parser.add_argument_group("options of suites")
    add_declared(suites, *_CONFIG, skip=options_of(*_COMMON))
    for action in suites._group_actions:
        action.help, action.of_suite = argparse.SUPPRESS, action.help  # type: ignore[attr-defined]


_SAES = "checkpoint directory, run directory (all its SAEs), or Hub name owner/name:id"


class _HelpAll(argparse.Action):
    """Print the help with the options of the suites."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        for action in parser._actions:
            action.help = getattr(action, "of_suite", action.help)
        parser.print_help()
        parser.exit()


def run(options: argparse.Namespace) -> int:
    """Run the benchmark of a command line; 0 if every suite ran, 3 if some could not.

    Raises:
        ConfigError and what `bench` raises: bad input, before anything ran.
    """
    from sae_lens_bipolar.saebench.results import CSV_FILE, budget_table, headline_table
    from sae_lens_bipolar.saebench.run import bench

    outcome = bench(options.saes, options.output, read_config(options))
    if outcome.rows:
        print(f"{headline_table(outcome.rows)}\n\n{budget_table(outcome.rows)}")
        print(f"results: {options.output / CSV_FILE}")
    for one in outcome.not_run:
        print(f"not run: {one.suite} {one.protocol} of {one.sae}: {one.reason}")
    return EXIT_NOT_RUN if outcome.not_run else 0


def read_config(options: argparse.Namespace) -> "BenchConfig":
    """The configuration of a command line: scale, then the YAML file, then the options.

    Raises:
        ConfigError: naming the option or key at fault.
    """
    from sae_lens_bipolar.saebench.config import BenchConfig

    from_file = dict(_read_yaml(options.config)) if options.config else {}
    scale = options.scale or from_file.pop("scale", "full")
    from_file.pop("scale", None)
    given = {name: getattr(options, name) for name in options_of(*_CONFIG)}
    chosen = {name: value for name, value in given.items() if value is not None}
    return BenchConfig.at_scale(scale, **{**from_file, **chosen})


def _read_yaml(path: Path) -> Mapping[str, Any]:
    from sae_lens_bipolar.files.fields import load_yaml

    try:
        found = load_yaml(path)
    except (OSError, DataError) as error:
        raise ConfigError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path} must hold options by name")
    return found
