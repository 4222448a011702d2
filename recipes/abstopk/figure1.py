"""Figure 1 of the AbsTopK paper, and the dial: does one latent hold two opposed words?

It reads the SAEs of a finished run (`--run`), such as those of `recipes.abstopk.table1`.

    results/opposition.json   per SAE and pair of words: flip, p-value, fragmentation; and controls
    results/dial.json         per SAE: what turning latents does to what their sides announce
    results/naming.json       per signed SAE: antonyms in the contexts of a latent's two sides
    results/example.json      the best pair found, with its latent's values in every template
    results/figure1.md        rates with intervals
    results/claims.json       the papers' claims, and their verdicts
    report/figure1.png        the best pair, the rates and the dial, with a CSV of what it shows

    python -m recipes.abstopk.figure1 --run RUN_DIRECTORY --output runs/abstopk/figure1

The same command continues a run that stopped. All settings are in recipes/abstopk/figure1.yaml.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.abstopk.figure1_parts import (
    Figure1Config,
    run_dial,
    run_naming,
    run_opposition,
)
from recipes.abstopk.figure1_report import DIAL, EXAMPLE, NAMING, OPPOSITION, report
from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell, run_recipe
from recipes.common.scales import build, read_scale
from sae_lens_bipolar.errors import ConfigError, require_choice
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.digests import checkpoint_digest
from sae_lens_bipolar.files.names import CHECKPOINTS, SUMMARY
from sae_lens_bipolar.reports import drawing

CONFIG = Path(__file__).parent / "figure1.yaml"
RESULT = "result.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_command("abstopk.figure1", __doc__, CONFIG)
    parser.add_argument("--run", type=Path, required=True, help="run directory of the SAEs")
    options = parse(parser, arguments)
    drawing.require_matplotlib()  # now rather than after the passes
    config = build(Figure1Config, read_scale(options.config, options.scale), "a scale")
    described = describe_run(options.run, config)
    cells = make_cells(config, options.run)
    settings = {**asdict(config), "run": described}
    if run_recipe(options, settings, cells, run_cell, config, RESULT):
        collect(config, options.output)
        print(report(options.output))


def describe_run(run: Path, config: Figure1Config) -> dict[str, Any]:
    """What the results must say of the run: model, text, tokens, and each SAE's digest.

    Raises:
        ConfigError: if it is no finished run, or lacks one of the SAEs.
    """
    if not (run / SUMMARY).is_file():
        raise ConfigError(f"--run {run} is not a finished run: it has no {SUMMARY}")
    rows = {row["name"]: row for row in read_json(run / SUMMARY)}
    for name in config.saes.values():
        require_choice(name, tuple(rows), "saes")
    first = rows[next(iter(config.saes.values()))]
    return {
        "model": Path(first["model"]).name,
        "hook_name": first["hook_name"],
        "n_train_tokens": first["n_train_tokens"],
        "digests": {
            label: checkpoint_digest(run / CHECKPOINTS / name)
            for label, name in config.saes.items()
        },
        "l0": {label: rows[name]["l0"] for label, name in config.saes.items()},
    }


def make_cells(config: Figure1Config, run: Path) -> list[Cell]:
    """One cell for words, one per SAE for the dial, one for names."""
    shared = {"config": json.loads(json.dumps(asdict(config))), "run": str(run.resolve())}
    labels = [f"dial.{label}" for label in config.saes]
    return [Cell(name, {**shared, "part": name}) for name in ("opposition", *labels, "naming")]


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Run one part and write its result."""
    config, run = build(Figure1Config, params["config"], "a scale"), Path(params["run"])
    part, _, label = params["part"].partition(".")
    if part == "opposition":
        found: Any = run_opposition(config, run, directory)
    elif part == "dial":
        found = run_dial(config, run, directory, label)
    else:
        found = run_naming(config, run, directory)
    write_json(directory / RESULT, found)


def collect(config: Figure1Config, output: Path) -> None:
    """Put the cells' results into `output/results`."""
    cells = output / "cells"
    opposition = read_json(cells / "opposition" / RESULT)
    write_json(output / EXAMPLE, opposition.pop("example"))
    write_json(output / OPPOSITION, opposition)
    dials = {label: read_json(cells / f"dial.{label}" / RESULT) for label in config.saes}
    write_json(output / DIAL, dials)
    write_json(output / NAMING, read_json(cells / "naming" / RESULT))


if __name__ == "__main__":
    main()
