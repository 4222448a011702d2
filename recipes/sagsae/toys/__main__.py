"""The toy protocols of the SA-GSAE paper (arXiv 2605.28149) on data with known ground truth.

A, polarity dial: signed axes with different gains on the two sides; MSE against L0, calibration.
B, directional anomalies: axes seen from their other side, under a strict budget of latents.
C, anticorrelated pairs: one latent for a pair of opposite features, or two?

Every cell (protocol, point of the sweep, SAE, seed) trains one SAE with SAELens's trainer on
SAELens's synthetic data. The same command continues a run that stopped; figures and verdicts are
made from `results/` once a protocol is complete. See recipes/configs/sagsae_toys.yaml.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from recipes.common.cells import Cell, read_scale, recipe_arguments, run_recipe
from recipes.common.claims import claims_table, read_claims, write_claims
from recipes.sagsae.toys import anomalies as toys_anomalies
from recipes.sagsae.toys import pairs as toys_pairs
from recipes.sagsae.toys import pairs_figures as toys_pairs_figures
from recipes.sagsae.toys import polarity_dial as toys_polarity_dial
from recipes.sagsae.toys.cell import ToyCell
from recipes.sagsae.toys.claims import toy_claims
from recipes.sagsae.toys.training import Training
from sae_lens_bipolar.errors import ConfigError, did_you_mean
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.reports.figures import save

CONFIG = Path(__file__).parent / "toys.yaml"
RESULT = "result.json"
T = TypeVar("T")


@dataclass(frozen=True)
class ToysConfig:
    """One scale of the recipe."""

    polarity_dial: toys_polarity_dial.PolarityDial
    anomalies: toys_anomalies.Anomalies
    pairs: toys_pairs.Pairs
    training: Training
    seeds: tuple[int, ...]
    n_eval: int  # held-out tokens of a cell

    def cells(self, protocol: str) -> list[Cell]:
        """The cells of one protocol, as `cells.run_cells` takes them."""
        planned = getattr(self, protocol).cells(self.seeds, self.training, self.n_eval)
        return [Cell(cell.name, asdict(cell)) for cell in planned]


PROTOCOLS = {
    toys_polarity_dial.PROTOCOL: (toys_polarity_dial.run_cell, toys_polarity_dial.figures),
    toys_anomalies.PROTOCOL: (toys_anomalies.run_cell, toys_anomalies.figures),
    toys_pairs.PROTOCOL: (toys_pairs.run_cell, toys_pairs_figures.figures),
}


def read_config(settings: Mapping[str, Any]) -> ToysConfig:
    """The configuration that a scale of the YAML file describes.

    Raises:
        ConfigError: if a field is unknown, missing or has a value that is not allowed.
    """
    nested = {
        "polarity_dial": toys_polarity_dial.PolarityDial,
        "anomalies": toys_anomalies.Anomalies,
        "pairs": toys_pairs.Pairs,
        "training": Training,
    }
    read = {
        key: _build(nested[key], value, key) if key in nested else value
        for key, value in settings.items()
    }
    return _build(ToysConfig, read, "a scale")


def _build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{key!r} is no setting of {where}, which has {', '.join(known)}"
                f"{did_you_mean(key, known)}"
            )
    tuples = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    try:
        return kind(**tuples)
    except TypeError as error:  # a field without a default is missing
        raise ConfigError(f"{where} is incomplete: {error}") from error


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
            save(plot, output / "figures")


def judge(output: Path) -> Path:
    """Compute every verdict from the files in `output/results`."""
    return write_claims(output, toy_claims(read_results(output)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_arguments(__doc__, CONFIG)
    parser.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: all"
    )
    given = parser.parse_args(arguments)
    settings = read_scale(given.config, given.scale)
    config = read_config(settings)
    resolved = {"recipe": "sagsae_toys", "scale": given.scale, **asdict(config)}
    planned = {protocol: config.cells(protocol) for protocol in given.protocols}
    cells = [cell for some in planned.values() for cell in some]
    if not run_recipe(given, resolved, cells, run_cell, result=RESULT):
        return
    for protocol, cells in planned.items():
        collect(given.output, cells, protocol)
    draw(given.output)
    file = judge(given.output)
    print(f"{claims_table(read_claims(file))}\nfigures: {given.output / 'figures'}")


if __name__ == "__main__":
    main()
