"""What the recipes of the sign-aware gated paper on language models share: what a scale trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from recipes.common.arguments import Options
from recipes.common.cells import Cell, Run, run_recipe
from recipes.common.evidence import write_train_seconds
from recipes.common.learning_rates import RESULT, Search, chosen_rates, search_cells
from recipes.common.medium_text import Study, study
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
    cache: Mapping[str, Any] = field(default_factory=dict)  # activations; `medium_text.study`
    search: Mapping[str, Any] = field(default_factory=dict)  # fields of `learning_rates.Search`
    margins: Mapping[str, float] = field(default_factory=dict)  # of verdicts

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("models", "seeds", "hookpoints"):
            require_some(name, getattr(self, name))
        for key in self.l0_control:
            require_choice(key, ("l0_rate", "l0_damping"), "l0_control")
        require_l0_control(**self.l0_control)
        if bool(self.cache) != bool(self.search):
            raise ConfigError("cache and search belong together: give both or none")
        if self.search:
            build(Search, self.search, "search")
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


def settings_of(plan: TrainingPlan) -> dict[str, Any]:
    """The settings of a scale for `config.yaml`; what it does not use is left out."""
    late = ("cache", "search", "margins")
    return {key: value for key, value in asdict(plan).items() if value or key not in late}


def run_plan(
    options: Options,
    plan: TrainingPlan,
    make_cells: Callable[[Study | None, Mapping[str, float]], list[Cell]],
    methods: Mapping[str, Mapping[str, Any]],
    run_cell: Run,
) -> list[Cell] | None:
    """Run the cells of a scale, after the search for learning rates where it has one.

    Args:
        options: of `arguments.parse`.
        plan: the scale.
        make_cells: called with what is cached and the learning rate of each method.
        methods: by name, the parameters of the one cell that a rate is tried on.
        run_cell: runs a cell, also of the search: its parameters then have a "validation".

    Returns:
        The cells, if all are done.
    """
    run = partial(run_recipe, options, settings_of(plan), run=run_cell, resources=plan)
    if not plan.search:
        cells = make_cells(None, {})
        return cells if run(cells, result=SUMMARY) else None
    found = study(plan.cache, options.cache)
    search = search_cells(
        build(Search, plan.search, "search"),
        {name: {**params, **cached(found)} for name, params in methods.items()},
        found.validation,
    )
    if not run(search, result=RESULT):
        return None
    cells = make_cells(found, chosen_rates(search, options.output))
    return cells if run(cells, result=SUMMARY) else None


def cached(found: Study | None) -> dict[str, str]:
    """What the parameters of a cell say of the cache."""
    return {} if found is None else {"cache": str(found.cache), "corpus": str(found.corpus)}


def sweep_config(params: Mapping[str, Any]) -> SweepConfig:
    """The configuration of a cell's sweep."""
    config = SweepConfig(**params["sweep"])
    if "cache" in params:
        config = replace(config, corpus=params["corpus"], activations=params["cache"])
        config = replace(config, lr=params["lr"])
    return config


def require_some(name: str, values: Sequence[Any]) -> None:
    """Raise ConfigError if a setting that holds several values holds none."""
    if not values:
        raise ConfigError(f"{name} is empty: give one or more")


def collect(cells: Sequence[Cell], output: Path) -> None:
    """Write `results/saes.json`, all cells' rows without what differs from run to run, and how long
    each trained beside it."""
    found = {cell.name: read_json(output / "cells" / cell.name / SUMMARY) for cell in cells}
    write_train_seconds(output, found)
    rows = [
        {key: value for key, value in row.items() if key != "train_seconds"}
        for of_cell in found.values()
        for row in of_cell
    ]
    for row in rows:
        row["model"] = Path(row["model"]).name
    write_json(output / SAES, rows)
