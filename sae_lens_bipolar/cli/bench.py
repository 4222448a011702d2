"""`sae-lens-bipolar bench`: the options, the run, and what is printed."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.saebench.config import SCALES, BenchConfig

EXIT_NOT_RUN = 3  # some suites gave no number; the rest is there


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of `BenchConfig`; those not given keep the scale's value."""
    parser.add_argument(
        "saes",
        nargs="+",
        metavar="SAE",
        help="checkpoint directory, run directory (all its SAEs), or Hub name owner/name:id",
    )
    parser.add_argument("--output", type=Path, required=True, help="results, caches and logs")
    parser.add_argument("--config", type=Path, help="YAML file of the options below; options win")
    parser.add_argument(
        "--scale", choices=tuple(SCALES), help="SAEBench's own sizes (default), or minutes on a CPU"
    )
    for field in fields(BenchConfig):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            parser.add_argument(flag, type=_parser_of(field.type), metavar=_metavar(field.type))


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


def read_config(options: argparse.Namespace) -> BenchConfig:
    """The configuration of a command line: scale, then the YAML file, then the options.

    Raises:
        ConfigError: naming the option or key at fault.
    """
    from_file = dict(_read_yaml(options.config)) if options.config else {}
    scale = options.scale or from_file.pop("scale", "full")
    from_file.pop("scale", None)
    given = {field.name: getattr(options, field.name) for field in fields(BenchConfig)}
    chosen = {name: value for name, value in given.items() if value is not None}
    return BenchConfig.at_scale(scale, **{**from_file, **chosen})


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        found = load_yaml(path)
    except (OSError, DataError) as error:
        raise ConfigError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path} must hold options by name")
    return found


def _parser_of(kind: Any) -> Any:
    """How a value of a field's type is read from the command line."""
    parts = get_args(kind)
    if getattr(kind, "__origin__", None) is tuple:
        return lambda text: tuple(parts[0](one.strip()) for one in text.split(",") if one.strip())
    return next((part for part in parts if part is not type(None)), kind)


def _metavar(kind: Any) -> str:
    parts = get_args(kind)
    if getattr(kind, "__origin__", None) is tuple:
        return f"{parts[0].__name__},..."
    return _parser_of(kind).__name__
