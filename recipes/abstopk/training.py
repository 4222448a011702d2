"""What the AbsTopK recipes train: JumpReLU, TopK and AbsTopK of one language model, layer by layer.

Settings come from a scale of recipes/abstopk/figure4.yaml or table2.yaml. AbsTopK is this package's
fast training class, TopK its counterpart (saved as SAELens's `topk`), JumpReLU SAELens's own class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import AbsTopKTrainingSAEConfig, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAEConfig

from recipes.abstopk.figure4_claims import FROM_MEAN, FROM_ZERO
from recipes.abstopk.jumprelu import JumpReLUAtL0TrainingSAEConfig
from recipes.abstopk.paper_numbers import TABLE_2_MODELS
from recipes.common.arguments import Options, Parser
from recipes.common.cells import Cell
from recipes.common.learning_rates import Search, search_cells, try_rate
from recipes.common.medium_text import Study
from recipes.common.scales import Resources, build
from recipes.common.text_sample import text_sample
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig as FromDataConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.errors import ConfigError, require_choice
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep

SWEEP = "sweep"  # the run directory of a cell's training
# How a setting that distinguishes JumpReLU SAEs of one layer shows in their names.
_SHORT = {
    "jumprelu_init_threshold": "theta",
    "l0_coefficient": "lambda",
    "jumprelu_bandwidth": "bandwidth",
    "target_l0": "target",
    "l0_target": "l0_",
}


@dataclass(frozen=True)
class ModelPlan:
    """The SAEs of one language model."""

    model: str  # bundled model, local directory or Hub name
    layers: tuple[int, ...]  # the SAEs read blocks.LAYER.hook_resid_post
    d_sae: int  # latents of every SAE
    k: tuple[int, ...]  # one TopK and one AbsTopK each
    jumprelu: tuple[Mapping[str, float], ...]  # one JumpReLU each: what differs from the scale's
    zero_start_k: tuple[int, ...] = ()  # AbsTopK and TopK of these k also start from b_dec = 0
    paper: str | None = None  # the model's name in the paper's Table 2, if it is there
    sweep: Mapping[str, Any] = field(default_factory=dict)  # what differs from the scale's
    bench: Mapping[str, Any] = field(default_factory=dict)  # likewise, in the recipe of Table 2

    def __post_init__(self) -> None:
        if not (self.layers and self.k and self.jumprelu):
            raise ConfigError(
                f"{self.model}: layers, k and jumprelu must not be empty: give one entry or more"
            )
        if self.paper is not None:
            require_choice(self.paper, TABLE_2_MODELS, "paper")


class Point(NamedTuple):
    """One SAE of every layer."""

    method: str  # "topk", "abstopk" or "jumprelu"
    point: str  # of its sweep, as it stands in names and tables
    config: type[TrainingSAEConfig]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingPlan:
    """One scale of a recipe."""

    models: Mapping[str, ModelPlan]  # by the name of its cell
    sae: Mapping[str, Any]  # fields of SAELens's configuration that all SAEs share
    jumprelu: Mapping[str, Any]  # further fields of the JumpReLU SAEs
    sweep: Mapping[str, Any]  # fields of SweepConfig
    corpus_characters: int | None = None  # read a sample of the corpus of that size; None: all
    start: str = "saelens"  # of all SAEs: as SAELens starts its own, or from "data"
    seeds: tuple[int, ...] = ()  # a cell trains one method with one of these; none: all methods
    cache: Mapping[str, Any] = field(default_factory=dict)  # activations; `medium_text.study`
    search: Mapping[str, Any] = field(default_factory=dict)  # fields of `learning_rates.Search`
    margins: Mapping[str, float] = field(default_factory=dict)  # of verdicts

    def __post_init__(self) -> None:
        require_choice(self.start, ("saelens", "data"), "start")
        if bool(self.seeds) != bool(self.cache) or bool(self.seeds) != bool(self.search):
            raise ConfigError("seeds, cache and search belong together: give all three or none")
        if self.search:
            build(Search, self.search, "search")
            if len(self.models) > 1 or any(len(plan.layers) > 1 for plan in self.models.values()):
                raise ConfigError("search: learning rates are chosen for one model and one layer")
        if not self.models:
            raise ConfigError("models is empty: give at least one")
        for plan in self.models.values():  # bad settings are found here, before anything is loaded
            for sae in self.saes(plan, plan.layers).values():
                sae.config(d_in=1)
            self.sweep_config(plan, "cpu")

    def saes(
        self,
        plan: ModelPlan,
        layers: tuple[int, ...],
        method: str | None = None,
        seed: int | None = None,
    ) -> dict[str, SweepSAE]:
        """The SAEs of a model by name, such as `abstopk_l3_k51` and `jumprelu_l3_theta0.1`.

        With `method` those of one method, with `seed` it is part of their names.
        """
        found = {}
        for layer in layers:
            hook = f"blocks.{layer}.hook_resid_post"
            for kind, point, config, settings in self._points(plan):
                if method not in (None, kind):
                    continue
                k = settings.get("k", settings.get("l0_target"))
                tags: dict[str, Any] = {"method": kind, "layer": layer, "point": point, "k": k}
                name = f"{kind}_l{layer}_{point}"
                if self.seeds:
                    tags["start"] = settings.get("b_dec_init", FROM_MEAN)
                    name += "_zeros" * (tags["start"] == FROM_ZERO)
                    name += "" if seed is None else f"_seed{seed}"
                config_of = partial(_config, config, {"d_sae": plan.d_sae, **self.sae, **settings})
                found[name] = SweepSAE(hook, config_of, tags)
        return found

    def _points(self, plan: ModelPlan) -> list[Point]:
        from_data = self.start == "data"
        jumprelu = JumpReLUAtL0TrainingSAEConfig if from_data else JumpReLUTrainingSAEConfig
        signed = FromDataConfig if from_data else AbsTopKTrainingSAEConfig
        as_saelens = {} if from_data else _AS_SAELENS
        top_k = (("topk", SparseTopKTrainingSAEConfig, as_saelens), ("abstopk", signed, {}))
        return [
            *(
                Point(method, f"k{k}", config, {"k": k, **more})
                for method, config, more in top_k
                for k in plan.k
            ),
            *(
                Point(method, f"k{k}", config, {"k": k, "b_dec_init": FROM_ZERO})
                for method, config, _ in top_k
                for k in plan.zero_start_k
            ),
            *(
                Point(
                    "jumprelu",
                    "_".join(f"{_SHORT.get(key, key)}{value}" for key, value in differs.items()),
                    jumprelu,
                    {**self.jumprelu, **differs},
                )
                for differs in plan.jumprelu
            ),
        ]

    def sweep_config(self, plan: ModelPlan, device: str) -> SweepConfig:
        """What the SAEs of a model share."""
        return build(
            SweepConfig,
            {**self.sweep, **plan.sweep, "model": plan.model, "device": device},
            "sweep",
        )


METHODS = ("topk", "abstopk", "jumprelu")

# How SAELens's configuration of AbsTopK starts, of which no field says anything else.
_AS_SAELENS = {"b_dec_init": "zeros", "decoder_init_norm": 0.1}


def _config(config: type[TrainingSAEConfig], settings: Mapping[str, Any], d_in: int) -> Any:
    return build(config, {**settings, "d_in": d_in}, config.__name__)


def read_plan(settings: Mapping[str, Any]) -> TrainingPlan:
    """The plan that a scale describes, given without the sections of one recipe alone."""
    models = {
        name: build(ModelPlan, values, f"models.{name}")
        for name, values in settings.get("models", {}).items()
    }
    return build(TrainingPlan, {**settings, "models": models}, "a scale")


def chosen(plan: TrainingPlan, names: Sequence[str] | None) -> dict[str, ModelPlan]:
    """The models called `names`; all of them without names.

    Raises:
        ConfigError: for a name that the plan does not have.
    """
    for name in names or ():
        require_choice(name, tuple(plan.models), "models")
    return {name: model for name, model in plan.models.items() if not names or name in names}


def training_cell(
    settings: Mapping[str, Any], name: str, layers: tuple[int, ...], device: str, output: Path
) -> Cell:
    """The cell of the SAEs of some layers of the model `name`, as `run_cells` takes it."""
    model = read_plan(settings).models[name]
    one = {**settings, "models": {name: settings["models"][name]}}
    called = name if layers == model.layers else f"{name}-l{layers[0]}"
    text = str((output / "text").resolve())  # where a sample of the corpus is made
    return Cell(called, {"plan": one, "layers": list(layers), "device": device, "text": text})


def train(params: Mapping[str, Any], directory: Path) -> list[dict[str, Any]]:
    """Train and measure the SAEs of a cell; return their rows, as `run_sweep` does."""
    plan = read_plan(params["plan"])
    (model,) = plan.models.values()
    config = plan.sweep_config(model, params["device"])
    layers = tuple(params["layers"])
    if "cache" in params:
        config = replace(config, corpus=params["corpus"], activations=params["cache"])
        config = replace(config, seed=params["seed"], lr=params["lr"])
        saes = plan.saes(model, layers, params["method"], params["seed"])
        return run_sweep(config, saes, directory / SWEEP)
    if plan.corpus_characters is not None:
        sample = text_sample(config.corpus, plan.corpus_characters, Path(params["text"]))
        config = replace(config, corpus=str(sample))
    return run_sweep(config, plan.saes(model, layers), directory / SWEEP)


def search_for(
    settings: Mapping[str, Any], name: str, layer: int, device: str, found: Study
) -> list[Cell]:
    """The cells that choose the learning rate of each method, at the first k of a model."""
    plan = read_plan(settings)
    one = {**settings, "models": {name: settings["models"][name]}}
    shared = {"plan": one, "layers": [layer], "device": device}
    shared |= {"cache": str(found.cache), "corpus": str(found.corpus)}
    search = build(Search, plan.search, "search")
    return search_cells(search, dict.fromkeys(METHODS, shared), found.validation)


def try_one(params: Mapping[str, Any], directory: Path) -> None:
    """Run one cell of `search_for`."""
    plan = read_plan(params["plan"])
    (model,) = plan.models.values()
    config = plan.sweep_config(model, params["device"])
    config = replace(config, corpus=params["corpus"], activations=params["cache"])
    saes = plan.saes(model, tuple(params["layers"]), params["method"])
    name, sae = next(iter(saes.items()))
    try_rate(params, config, name, sae, sae.tags["k"], directory)


def seed_cells(
    settings: Mapping[str, Any],
    name: str,
    layer: int,
    device: str,
    found: Study,
    rates: Mapping[str, float],
) -> list[Cell]:
    """One cell per method and seed, at the method's learning rate."""
    plan = read_plan(settings)
    one = {**settings, "models": {name: settings["models"][name]}}
    shared = {"plan": one, "layers": [layer], "device": device}
    shared |= {"cache": str(found.cache), "corpus": str(found.corpus)}
    return [
        Cell(
            f"{name}-l{layer}-{method}-seed{seed}",
            {**shared, "method": method, "seed": seed, "lr": rates[method]},
        )
        for method in METHODS
        for seed in plan.seeds
    ]


def add_options(parser: Parser) -> None:
    """The options that both recipes have beside those of every recipe."""
    parser.add_argument("--models", nargs="+", help="names in the configuration; all by default")
    parser.add_argument("--device", default=default_device(), help="of models and SAEs")


def seeded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a scale with the seed of its sweep, which `environment.json` names."""
    return {"seed": settings.get("sweep", {}).get("seed", 0), **settings}


def resources(options: Options) -> Resources:
    """What a cell takes: all of torch's threads, and the GPU if it runs on one."""
    gpus = float(options.device.startswith("cuda"))
    return Resources(num_cpus=torch.get_num_threads(), num_gpus=gpus)


def default_device() -> str:
    """ "cuda" where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
