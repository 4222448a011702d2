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

from recipes.abstopk.paper_numbers import TABLE_2_MODELS
from recipes.common.arguments import Options, Parser
from recipes.common.cells import Cell
from recipes.common.scales import Resources, build
from recipes.common.text_sample import text_sample
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
}


@dataclass(frozen=True)
class ModelPlan:
    """The SAEs of one language model."""

    model: str  # bundled model, local directory or Hub name
    layers: tuple[int, ...]  # the SAEs read blocks.LAYER.hook_resid_post
    d_sae: int  # latents of every SAE
    k: tuple[int, ...]  # one TopK and one AbsTopK each
    jumprelu: tuple[Mapping[str, float], ...]  # one JumpReLU each: what differs from the scale's
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

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("models is empty: give at least one")
        for plan in self.models.values():  # bad settings are found here, before anything is loaded
            for sae in self.saes(plan, plan.layers).values():
                sae.config(d_in=1)
            self.sweep_config(plan, "cpu")

    def saes(self, plan: ModelPlan, layers: tuple[int, ...]) -> dict[str, SweepSAE]:
        """The SAEs of a model by name, such as `abstopk_l3_k51` and `jumprelu_l3_theta0.1`."""
        found = {}
        for layer in layers:
            hook = f"blocks.{layer}.hook_resid_post"
            for method, point, config, settings in self._points(plan):
                tags = {"method": method, "layer": layer, "point": point, "k": settings.get("k")}
                config_of = partial(_config, config, {"d_sae": plan.d_sae, **self.sae, **settings})
                found[f"{method}_l{layer}_{point}"] = SweepSAE(hook, config_of, tags)
        return found

    def _points(self, plan: ModelPlan) -> list[Point]:
        return [
            *(
                Point("topk", f"k{k}", SparseTopKTrainingSAEConfig, {"k": k, **_AS_SAELENS})
                for k in plan.k
            ),
            *(Point("abstopk", f"k{k}", AbsTopKTrainingSAEConfig, {"k": k}) for k in plan.k),
            *(
                Point(
                    "jumprelu",
                    "_".join(f"{_SHORT.get(key, key)}{value}" for key, value in differs.items()),
                    JumpReLUTrainingSAEConfig,
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
    """Train and measure the SAEs of a `training_cell`; return their rows, as `run_sweep` does."""
    plan = read_plan(params["plan"])
    (model,) = plan.models.values()
    config = plan.sweep_config(model, params["device"])
    if plan.corpus_characters is not None:
        sample = text_sample(config.corpus, plan.corpus_characters, Path(params["text"]))
        config = replace(config, corpus=str(sample))
    return run_sweep(config, plan.saes(model, tuple(params["layers"])), directory / SWEEP)


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
