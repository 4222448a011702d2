"""What the AbsTopK recipes train: JumpReLU, TopK and AbsTopK of one language model, layer by layer.

Settings come from a scale of recipes/configs/abstopk_*.yaml. AbsTopK is this package's fast
training class, TopK its counterpart (saved as SAELens's `topk`), JumpReLU SAELens's own class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from sae_lens import AbsTopKTrainingSAEConfig, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAEConfig

from recipes.abstopk.paper_numbers import TABLE_2_MODELS
from recipes.common.cells import Cell
from recipes.common.text_sample import text_sample
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.errors import ConfigError, did_you_mean, require_choice
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep

T = TypeVar("T")
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
            raise ConfigError(f"{self.model}: layers, k and jumprelu need one entry or more each")
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
            *(Point("topk", f"k{k}", SparseTopKTrainingSAEConfig, {"k": k}) for k in plan.k),
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


def _config(config: type[TrainingSAEConfig], settings: Mapping[str, Any], d_in: int) -> Any:
    return build(config, {**settings, "d_in": d_in}, config.__name__)


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from settings as YAML gives them; lists become tuples.

    Raises:
        ConfigError: naming an unknown setting, a missing one, or a value that is not allowed.
    """
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"{key!r} is no setting of {where}{did_you_mean(key, known)}")
    tuples = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    try:
        return kind(**tuples)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def read_plan(settings: Mapping[str, Any]) -> TrainingPlan:
    """The plan that a scale of the YAML file describes, without the parts of one recipe alone."""
    models = {
        name: build(ModelPlan, values, f"models.{name}")
        for name, values in settings.get("models", {}).items()
    }
    return build(TrainingPlan, {**settings, "models": models}, "a scale")


def training_cell(
    settings: Mapping[str, Any], name: str, layers: tuple[int, ...], device: str, output: Path
) -> Cell:
    """The cell of the SAEs of some layers of the model `name`, as `run_cells` takes it."""
    plan = read_plan(settings)
    sweep = {**plan.sweep, **plan.models[name].sweep}
    if plan.corpus_characters is not None:
        folder = output / "text"
        sample = text_sample(sweep["corpus"], plan.corpus_characters, folder.resolve())
        sweep["corpus"] = str(sample)
    one = {**settings, "models": {name: settings["models"][name]}, "sweep": sweep}
    called = name if layers == plan.models[name].layers else f"{name}-l{layers[0]}"
    return Cell(called, {"plan": one, "layers": list(layers), "device": device})


def train(params: Mapping[str, Any], directory: Path) -> list[dict[str, Any]]:
    """Train and measure the SAEs of a `training_cell`; return their rows, as `run_sweep` does."""
    plan = read_plan(params["plan"])
    (model,) = plan.models.values()
    saes = plan.saes(model, tuple(params["layers"]))
    return run_sweep(plan.sweep_config(model, params["device"]), saes, directory / SWEEP)


def default_device() -> str:
    """ "cuda" where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
