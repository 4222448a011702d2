"""The cells of the sign-aware gated paper (arXiv 2605.28149): half width against full width.

For every model and hookpoint: SA-GSAE and Gated SAEs at width H and 2H, AbsTopK at H and TopK at
2H, over a sweep of L0 and several seeds. A cell is one model and seed: its SAEs train in shared
forward passes, of all hookpoints at once or (`shared_hooks: false`) of one. What comes out:

    results/saes.json          a row an SAE: R^2, loss recovered, dead fraction, bipolar share
    results/comparisons.json   a row a hookpoint: SA-GSAE at H against Gated at 2H
    results/claims.json        the paper's claims and their verdicts, from the two files above
    report/                    the paper's figures 2 and 3, and R^2, with the data they show

    python -m recipes.sagsae.cells --scale small --output runs/sagsae_cells
    python -m recipes.sagsae.cells --scale paper --output runs/sagsae_cells_paper --cluster auto

A stopped run is taken up where it was by the same command.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens import AbsTopKTrainingSAEConfig

from recipes.common.cells import Cell, read_scale, recipe_arguments, run_recipe
from recipes.sagsae.cells_verdicts import write_report
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.training.l0_control import require_l0_control
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.names import SUMMARY
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep

CONFIG = Path(__file__).parent / "cells.yaml"


class Kind(NamedTuple):
    """One line of the paper's figures."""

    config: Any  # training configuration
    widths: int  # its width in units of H
    steered: bool  # L0 by a controller, not by k


KINDS = {
    "SA-GSAE H": Kind(SignAwareGatedTrainingSAEConfig, 1, True),
    "SA-GSAE 2H": Kind(SignAwareGatedTrainingSAEConfig, 2, True),
    "Gated H": Kind(GatedL0TrainingSAEConfig, 1, True),
    "Gated 2H": Kind(GatedL0TrainingSAEConfig, 2, True),
    "AbsTopK H": Kind(AbsTopKTrainingSAEConfig, 1, False),
    "TopK 2H": Kind(SparseTopKTrainingSAEConfig, 2, False),
}


@dataclass(frozen=True)
class CellsConfig:
    """One scale of `configs/sagsae_cells.yaml`."""

    models: list[dict[str, Any]]  # each {model, layer, ...}; more keys are fields of SweepConfig
    width: int  # H
    l0_targets: list[int]  # the sweep
    l1_start: float  # lambda at the start; the L0 controller goes on from there
    seeds: list[int]  # of weights, data order and held-out documents
    hookpoints: list[str] = field(default_factory=lambda: ["mlp_out", "attn_out", "resid_post"])
    kinds: list[str] = field(default_factory=lambda: list(KINDS))  # SAEs of the first seed
    repeated: list[str] = field(default_factory=lambda: list(KINDS))  # SAEs of the other seeds
    shared_hooks: bool = True  # a cell trains all hookpoints; False: one, where memory is short
    l0_control: dict[str, float] = field(default_factory=dict)  # l0_rate, l0_damping; else defaults
    sweep: dict[str, Any] = field(default_factory=dict)  # fields of SweepConfig, for all cells
    num_cpus: int = 1  # cores a cell takes
    num_gpus: float = 0  # GPUs a cell takes
    retries: int = 1  # times a failed cell is started again

    def __post_init__(self) -> None:
        for key in self.l0_control:
            require_choice(key, ("l0_rate", "l0_damping"), "l0_control")
        require_l0_control(**self.l0_control)
        for name in ("models", "l0_targets", "seeds", "hookpoints", "kinds"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty: give at least one")
        for label in (*self.kinds, *self.repeated):
            require_choice(label, tuple(KINDS), "kinds")
        for l0 in self.l0_targets:
            require_number(l0, "l0_targets", 1, self.width)
        require_number(self.l1_start, "l1_start", 0, exclusive=True)
        if not set(self.repeated) <= set(self.kinds):
            raise ConfigError(f"repeated={self.repeated} must be among kinds={self.kinds}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = recipe_arguments(__doc__, CONFIG).parse_args(arguments)
    config = CellsConfig(**read_scale(options.config, options.scale))
    cells = make_cells(config)
    resources = {key: getattr(config, key) for key in ("num_cpus", "num_gpus", "retries")}
    if run_recipe(options, asdict(config), cells, run_cell, result=SUMMARY, **resources):
        collect(cells, options.output)
        print(write_report(options.output))


def make_cells(config: CellsConfig) -> list[Cell]:
    """One cell a model and seed, or a model, seed and hookpoint."""
    cells = []
    for model in config.models:
        sweep = {key: value for key, value in model.items() if key != "layer"}
        groups = [config.hookpoints] if config.shared_hooks else [[h] for h in config.hookpoints]
        for seed in config.seeds:
            for hookpoints in groups:
                name = f"{Path(str(model['model'])).name}.layer{model['layer']}.seed{seed}"
                name += "" if config.shared_hooks else f".{hookpoints[0]}"
                params = {
                    "sweep": {**config.sweep, **sweep, "seed": seed},
                    "layer": model["layer"],
                    "hookpoints": hookpoints,
                    "kinds": config.kinds if seed == config.seeds[0] else config.repeated,
                    "width": config.width,
                    "l0_targets": config.l0_targets,
                    "l1_start": config.l1_start,
                    "l0_control": config.l0_control,
                }
                cells.append(Cell(name, params))
    return cells


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train and measure all SAEs of one cell; its directory is an ordinary run directory."""
    saes = {
        f"{hookpoint}.{label.replace(' ', '_')}.{l0}": make_sae(params, hookpoint, label, l0)
        for hookpoint in params["hookpoints"]
        for label in params["kinds"]
        for l0 in params["l0_targets"]
    }
    run_sweep(SweepConfig(**params["sweep"]), saes, directory)


def make_sae(params: Mapping[str, Any], hookpoint: str, label: str, l0: int) -> SweepSAE:
    """One SAE of a cell: every kind starts from the same normalisation, the gated ones alike."""
    kind = KINDS[label]
    fields: dict[str, Any] = {
        "d_sae": kind.widths * params["width"],
        "normalize_activations": "expected_average_only_in",
    }
    if kind.steered:
        fields |= {"l0_target": l0, "threshold_init_l0": l0, "b_dec_init": "mean"}
        fields |= {"l1_coefficient": params["l1_start"], **params["l0_control"]}
    else:
        fields |= {"k": l0}
    return SweepSAE(
        hook_name=f"blocks.{params['layer']}.hook_{hookpoint}",
        config=partial(kind.config, **fields),
        tags={"label": label, "hookpoint": hookpoint, "l0_target": l0},
    )


def collect(cells: Sequence[Cell], output: Path) -> None:
    """Write `results/saes.json`: all cells' rows, without what differs from run to run."""
    rows = [
        {key: value for key, value in row.items() if key != "train_seconds"}
        for cell in cells
        for row in read_json(output / "cells" / cell.name / SUMMARY)
    ]
    for row in rows:
        row["model"] = Path(row["model"]).name
    write_json(output / "results/saes.json", rows)


if __name__ == "__main__":
    main()
