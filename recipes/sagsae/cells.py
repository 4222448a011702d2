"""The cells of the sign-aware gated paper (arXiv 2605.28149): half width against full width.

For every model and hookpoint: SA-GSAE and Gated SAEs at width H and 2H, AbsTopK at H and TopK at
2H, over a sweep of L0 and several seeds. A cell is one model and seed: its SAEs train in shared
forward passes, of all hookpoints at once or (`shared_hooks: false`) of one. A run directory holds

    results/saes.json          one row per SAE: R^2, loss recovered, dead fraction, bipolar share
    results/comparisons.json   one row per hookpoint: SA-GSAE at H against Gated at 2H
    results/claims.json        the paper's claims and their verdicts, from the two files above
    report/                    the paper's figures 2 and 3, and R^2, with the data they show

    python -m recipes.sagsae.cells --output runs/sagsae/cells
    python -m recipes.sagsae.cells --scale paper --output runs/sagsae/cells_paper --cluster auto

The same command continues a run that stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens import AbsTopKTrainingSAEConfig

from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell
from recipes.common.learning_rates import try_rate
from recipes.common.medium_text import Study
from recipes.common.scales import build, read_scale
from recipes.common.time_limit import limited
from recipes.sagsae.cells_verdicts import report
from recipes.sagsae.training import (
    TrainingPlan,
    cached,
    collect,
    require_some,
    run_plan,
    sweep_config,
)
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.runs.sweep import SweepSAE, run_sweep

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


@dataclass(frozen=True, kw_only=True)
class CellsConfig(TrainingPlan):
    """One scale of `recipes/sagsae/cells.yaml`.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    l0_targets: tuple[int, ...]  # the sweep
    hookpoints: tuple[str, ...] = ("mlp_out", "attn_out", "resid_post")
    kinds: tuple[str, ...] = tuple(KINDS)  # SAEs of the first seed
    repeated: tuple[str, ...] = tuple(KINDS)  # SAEs of the other seeds
    shared_hooks: bool = True  # a cell trains all hookpoints; False: one, where memory is short

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l0_targets", "kinds"):
            require_some(name, getattr(self, name))
        for label in (*self.kinds, *self.repeated):
            require_choice(label, tuple(KINDS), "kinds")
        for l0 in self.l0_targets:
            require_number(l0, "l0_targets", 1, self.width)
        if not set(self.repeated) <= set(self.kinds):
            raise ConfigError(
                f"repeated={list(self.repeated)} is not allowed: all of it must be among "
                f"kinds={list(self.kinds)}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(recipe_command("sagsae.cells", __doc__, CONFIG), arguments)
    drawing.require_matplotlib()  # now rather than after the training
    config = build(CellsConfig, read_scale(options.config, options.scale), "a scale")
    with limited(options.minutes):
        cells = run_plan(options, config, partial(make_cells, config), searched(config), run_cell)
        if cells is not None:
            collect(cells, options.output)
            print(report(options.output))


def searched(config: CellsConfig) -> dict[str, dict[str, Any]]:
    """Parameters of the SAE of each kind that learning rates are tried on: the middle target."""
    model, target = config.models[0], config.l0_targets[len(config.l0_targets) // 2]
    shared = _params(config, model, config.seeds[0], config.hookpoints[-1:])
    return {kind: {**shared, "kinds": (kind,), "l0_targets": (target,)} for kind in config.kinds}


def make_cells(
    config: CellsConfig, found: Study | None = None, rates: Mapping[str, float] | None = None
) -> list[Cell]:
    """One cell per model and seed, per hookpoint if they are not shared, per kind if each has its
    own learning rate."""
    cells = []
    for model in config.models:
        groups = [config.hookpoints] if config.shared_hooks else [(h,) for h in config.hookpoints]
        for seed in config.seeds:
            kinds = config.kinds if seed == config.seeds[0] else config.repeated
            for hookpoints in groups:
                name = f"{Path(str(model['model'])).name}.layer{model['layer']}.seed{seed}"
                name += "" if config.shared_hooks else f".{hookpoints[0]}"
                params = {**_params(config, model, seed, hookpoints), "kinds": kinds}
                if not rates:
                    cells.append(Cell(name, params))
                    continue
                for kind in kinds:
                    own = {"kinds": (kind,), "lr": rates[kind], **cached(found)}
                    cells.append(Cell(f"{name}.{kind.replace(' ', '_')}", {**params, **own}))
    return cells


def _params(
    config: CellsConfig, model: Mapping[str, Any], seed: int, hookpoints: Sequence[str]
) -> dict[str, Any]:
    return {
        "sweep": config.sweep_of(model, seed),
        "layer": model["layer"],
        "hookpoints": hookpoints,
        "width": config.width,
        "l0_targets": config.l0_targets,
        "l1_start": config.l1_start,
        "l0_control": config.l0_control,
    }


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train and measure all SAEs of one cell; its directory is an ordinary run directory."""
    saes = {
        f"{hookpoint}.{label.replace(' ', '_')}.{l0}": make_sae(params, hookpoint, label, l0)
        for hookpoint in params["hookpoints"]
        for label in params["kinds"]
        for l0 in params["l0_targets"]
    }
    if "validation" in params:
        ((name, sae),) = saes.items()
        try_rate(params, sweep_config(params), name, sae, params["l0_targets"][0], directory)
    else:
        run_sweep(sweep_config(params), saes, directory)


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
        if kind.config is SparseTopKTrainingSAEConfig:
            # As SAELens's TopK and AbsTopK start.
            fields |= {"b_dec_init": "zeros", "decoder_init_norm": 0.1}
    return SweepSAE(
        hook_name=f"blocks.{params['layer']}.hook_{hookpoint}",
        config=partial(kind.config, **fields),
        tags={"label": label, "hookpoint": hookpoint, "l0_target": l0},
    )


if __name__ == "__main__":
    main()
