"""What each part of the sign-aware gated SAE is for (the ablations of arXiv 2605.28149).

Every variant changes the recommended settings (symmetric, two-sided, auxiliary reconstruction with
a detached decoder, thresholds from the first batch, resets of dead ones) in one place, at one L0
target. At full width (2H) it is also trained as the paper recommends, from small thresholds, with
and without resets. All variants of a seed train in shared forward passes: they are one cell.

    results/saes.json       one row per SAE
    results/variants.json   one row per hookpoint and variant: means and standard errors over seeds
    results/claims.json     the paper's claims and their verdicts, from the rows
    report/ablations.png    R^2, loss recovered, dead fraction and L0 of every variant, with a CSV

    python -m recipes.sagsae.ablations --output runs/sagsae/ablations
    python -m recipes.sagsae.ablations --scale paper --output runs/ablations_paper --cluster auto
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell
from recipes.common.learning_rates import try_rate
from recipes.common.medium_text import Study
from recipes.common.scales import build, read_scale
from recipes.common.time_limit import limited
from recipes.sagsae.ablations_verdicts import FULL_WIDTH, RECOMMENDED, report
from recipes.sagsae.training import (
    TrainingPlan,
    cached,
    collect,
    require_some,
    run_plan,
    sweep_config,
)
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.errors import require_choice, require_number
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.runs.sweep import SweepSAE, run_sweep

CONFIG = Path(__file__).parent / "ablations.yaml"
SMALL_THRESHOLDS = {"threshold_init_l0": 0, "threshold_init": 0.01}
LARGE_THRESHOLDS = {"threshold_init_l0": 0, "threshold_init": 5.0}  # u has a deviation near 1
NO_RESETS = {"reset_dead_thresholds": False}
# Label -> (width in units of H, what differs from the recommended settings).
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    RECOMMENDED: (1, {}),
    "symmetry gain": (1, {"symmetry": "gain"}),
    "symmetry none": (1, {"symmetry": "none"}),
    "one-sided gate": (1, {"two_sided_gate": False}),
    "no auxiliary loss": (1, {"aux_coefficient": 0.0}),
    "auxiliary loss trains the decoder": (1, {"detach_aux_decoder": False}),
    "sparsity term trains the decoder": (1, {"detach_l1_decoder": False}),
    FULL_WIDTH: (2, {}),
    "2H: no resets": (2, NO_RESETS),
    "2H: small thresholds": (2, SMALL_THRESHOLDS),
    "2H: small thresholds, no resets": (2, {**SMALL_THRESHOLDS, **NO_RESETS}),
    "2H: large thresholds, no resets": (2, {**LARGE_THRESHOLDS, **NO_RESETS}),
}


@dataclass(frozen=True, kw_only=True)
class AblationsConfig(TrainingPlan):
    """One scale of `recipes/sagsae/ablations.yaml`.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    l0_target: int  # of every variant
    hookpoints: tuple[str, ...] = ("resid_post",)
    variants: tuple[str, ...] = tuple(VARIANTS)  # labels of VARIANTS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_some("variants", self.variants)
        for label in self.variants:
            require_choice(label, tuple(VARIANTS), "variants")
        require_number(self.l0_target, "l0_target", 1, self.width)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(recipe_command("sagsae.ablations", __doc__, CONFIG), arguments)
    drawing.require_matplotlib()  # now rather than after the training
    config = build(AblationsConfig, read_scale(options.config, options.scale), "a scale")
    with limited(options.minutes):
        cells = run_plan(options, config, partial(make_cells, config), searched(config), run_cell)
        if cells is not None:
            collect(cells, options.output)
            print(report(options.output))


def searched(config: AblationsConfig) -> dict[str, dict[str, Any]]:
    """Parameters of the one SAE that learning rates are tried on: all variants take its rate."""
    first = make_cells(config)[0].params
    return {RECOMMENDED: {**first, "variants": (RECOMMENDED,)}}


def make_cells(
    config: AblationsConfig, found: Study | None = None, rates: Mapping[str, float] | None = None
) -> list[Cell]:
    """One cell per model, hookpoint and seed."""
    names = ("variants", "width", "l0_target", "l1_start", "l0_control")
    shared = {key: getattr(config, key) for key in names} | cached(found)
    if rates:
        shared["lr"] = rates[RECOMMENDED]
    return [
        Cell(
            f"{Path(str(model['model'])).name}.layer{model['layer']}.{hookpoint}.seed{seed}",
            {
                "sweep": config.sweep_of(model, seed),
                "layer": model["layer"],
                "hookpoint": hookpoint,
                **shared,
            },
        )
        for model in config.models
        for hookpoint in config.hookpoints
        for seed in config.seeds
    ]


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train and measure all variants of one seed; the directory is an ordinary run directory."""
    saes = {f"{i:02d}": make_sae(params, label) for i, label in enumerate(params["variants"])}
    if "validation" in params:
        ((name, sae),) = saes.items()
        try_rate(params, sweep_config(params), name, sae, params["l0_target"], directory)
    else:
        run_sweep(sweep_config(params), saes, directory)


def make_sae(params: Mapping[str, Any], label: str) -> SweepSAE:
    """One variant: the recommended settings with its changes."""
    widths, changes = VARIANTS[label]
    fields = {
        "d_sae": widths * params["width"],
        "normalize_activations": "expected_average_only_in",
        "l0_target": params["l0_target"],
        "threshold_init_l0": params["l0_target"],
        "b_dec_init": "mean",
        "l1_coefficient": params["l1_start"],
        **params["l0_control"],
        **changes,
    }
    return SweepSAE(
        hook_name=f"blocks.{params['layer']}.hook_{params['hookpoint']}",
        config=partial(SignAwareGatedTrainingSAEConfig, **fields),
        tags={
            "label": label,
            "hookpoint": params["hookpoint"],
            "l0_target": params["l0_target"],
        },
    )


if __name__ == "__main__":
    main()
