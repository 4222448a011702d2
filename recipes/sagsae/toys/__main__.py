"""The toy protocols of the SA-GSAE paper (arXiv 2605.28149) on data with known ground truth.

A, polarity dial: signed axes with different gains on the two sides; MSE against L0, calibration.
B, directional anomalies: axes seen from their other side, under a strict budget of latents.
C, anticorrelated pairs: one latent for a pair of opposite features, or two?

Every cell (protocol, point of the sweep, SAE, seed) trains one SAE with SAELens's trainer on
SAELens's synthetic data. Figures and verdicts are made from `results/` once a protocol is complete.

    results/PROTOCOL.json   one row per SAE
    results/claims.json     the paper's claims and their verdicts, from the rows
    report/                 the paper's figures 4 to 11, with the data they show

    python -m recipes.sagsae.toys --output runs/sagsae/toys

The same command continues a run that stopped. More commands are in recipes/sagsae/toys/toys.yaml.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell, run_recipe
from recipes.common.claims import claims_table, read_claims, write_claims
from recipes.common.scales import Resources, build, read_scale
from recipes.sagsae.toys import anomalies, pairs, pairs_figures, polarity_dial
from recipes.sagsae.toys.anomalies import Anomalies
from recipes.sagsae.toys.cell import ToyCell
from recipes.sagsae.toys.claims import toy_claims
from recipes.sagsae.toys.pairs import Pairs
from recipes.sagsae.toys.polarity_dial import PolarityDial
from recipes.sagsae.toys.training import Training
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import save

CONFIG = Path(__file__).parent / "toys.yaml"
RESULT = "result.json"


# Name -> (what trains and measures a cell, what draws its figures)
PROTOCOLS = {
    polarity_dial.PROTOCOL: (polarity_dial.run_cell, polarity_dial.figures),
    anomalies.PROTOCOL: (anomalies.run_cell, anomalies.figures),
    pairs.PROTOCOL: (pairs.run_cell, pairs_figures.figures),
}


@dataclass(frozen=True, kw_only=True)
class ToysConfig(Resources):
    """One scale of `recipes/sagsae/toys/toys.yaml`."""

    polarity_dial: PolarityDial
    anomalies: Anomalies
    pairs: Pairs
    training: Training
    seeds: tuple[int, ...]
    n_eval: int  # held-out tokens per cell

    def cells(self, protocol: str) -> list[Cell]:
        """The cells of one protocol, as `run_cells` takes them."""
        planned = getattr(self, protocol).cells(self.seeds, self.training, self.n_eval)
        return [Cell(cell.name, asdict(cell)) for cell in planned]


def read_config(settings: Mapping[str, Any]) -> ToysConfig:
    """The configuration that a scale of the YAML file describes.

    Raises:
        ConfigError: if a field is unknown, missing or has a value that is not allowed.
    """
    nested = {
        "polarity_dial": PolarityDial,
        "anomalies": Anomalies,
        "pairs": Pairs,
        "training": Training,
    }
    read = {
        key: build(nested[key], value, key) if key in nested else value
        for key, value in settings.items()
    }
    return build(ToysConfig, read, "a scale")


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train and measure one SAE, and write its row."""
    cell = ToyCell.from_params(params)
    run, _ = PROTOCOLS[cell.protocol]
    write_json(directory / RESULT, run(cell))


def collect(output: Path, cells: Sequence[Cell], protocol: str) -> None:
    """Put the rows of a protocol's cells into `results/PROTOCOL.json`."""
    rows = [read_json(output / "cells" / cell.name / RESULT) for cell in cells]
    write_json(output / "results" / f"{protocol}.json", rows)


def read_results(output: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every protocol that has a result file."""
    files = {protocol: output / "results" / f"{protocol}.json" for protocol in PROTOCOLS}
    return {protocol: read_json(file) for protocol, file in files.items() if file.exists()}


def draw(output: Path) -> None:
    """Draw every figure from the files in `output/results`."""
    for protocol, rows in read_results(output).items():
        _, figures = PROTOCOLS[protocol]
        for plot in figures(rows):
            save(plot, output / "report")


def judge(output: Path) -> Path:
    """Compute every verdict from the files in `output/results`."""
    return write_claims(output, toy_claims(read_results(output)))


def report(output: Path) -> str:
    """Write figures and claims from the files in `output/results`; return the claims as a table."""
    draw(output)
    return claims_table(read_claims(judge(output)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_command("sagsae.toys", __doc__, CONFIG)
    parser.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: all"
    )
    options = parse(parser, arguments)
    drawing.require_matplotlib()  # now rather than after the training
    config = read_config(read_scale(options.config, options.scale))
    planned = {protocol: config.cells(protocol) for protocol in options.protocols}
    cells = [cell for some in planned.values() for cell in some]
    if run_recipe(options, asdict(config), cells, run_cell, config, RESULT):
        for protocol, some in planned.items():
            collect(options.output, some, protocol)
        print(report(options.output))


if __name__ == "__main__":
    main()
