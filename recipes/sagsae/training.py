"""What the recipes of the sign-aware gated paper on language models share: what a scale trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.common.cells import Cell
from recipes.common.scales import Resources, build
from sae_lens_bipolar.architectures.training.l0_control import require_l0_control
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.names import SUMMARY
from sae_lens_bipolar.runs.sweep import SweepConfig

SAES = "results/saes.json"  # one row per SAE, of all cells


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Resources):
    """Models, hookpoints and training of one scale of a recipe.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    models: tuple[Mapping[str, Any], ...]  # each {model, layer, ...}; more keys: SweepConfig's
    width: int  # H, latents
    seeds: tuple[int, ...]  # of weights, data order and held-out documents
    hookpoints: tuple[str, ...]  # the SAEs read blocks.LAYER.hook_HOOKPOINT
    l1_start: float = 1.0  # lambda at the start; the L0 controller goes on from there
    l0_control: Mapping[str, float] = field(default_factory=dict)  # l0_rate, l0_damping
    sweep: Mapping[str, Any] = field(default_factory=dict)  # fields of SweepConfig, for all cells

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("models", "seeds", "hookpoints"):
            require_some(name, getattr(self, name))
        for key in self.l0_control:
            require_choice(key, ("l0_rate", "l0_damping"), "l0_control")
        require_l0_control(**self.l0_control)
        require_number(self.l1_start, "l1_start", 0, exclusive=True)
        for model in self.models:
            for key in ("model", "layer"):
                if key not in model:
                    raise ConfigError(f"models: {dict(model)} lacks {key!r}: give a value")
            build(SweepConfig, self.sweep_of(model, self.seeds[0]), "sweep and models")

    def sweep_of(self, model: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Fields of the SweepConfig of one model and seed."""
        own = {key: value for key, value in model.items() if key != "layer"}
        return {**self.sweep, **own, "seed": seed}


def require_some(name: str, values: Sequence[Any]) -> None:
    """Raise ConfigError if a setting that holds several values holds none."""
    if not values:
        raise ConfigError(f"{name} is empty: give one or more")


def collect(cells: Sequence[Cell], output: Path) -> None:
    """Write `results/saes.json`: all cells' rows, without what differs from run to run."""
    rows = [
        {key: value for key, value in row.items() if key != "train_seconds"}
        for cell in cells
        for row in read_json(output / "cells" / cell.name / SUMMARY)
    ]
    for row in rows:
        row["model"] = Path(row["model"]).name
    write_json(output / SAES, rows)
