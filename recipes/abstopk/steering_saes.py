"""The SAEs of the steering recipes: all kinds and seeds in one sweep, with shared forward passes.

All read the same batches in the same order; seeds differ in the first weights. All start with
`b_dec` at the mean of their input: from zero, a comparison measures mostly how far each kind can
move it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import AbsTopKTrainingSAEConfig, JumpReLUTrainingSAEConfig
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler

from recipes.abstopk.steering_text import training_corpus
from recipes.common.scales import build
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.evaluation.placement import activations
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.files.atomic import atomic_path
from sae_lens_bipolar.runs.assets import load_assets
from sae_lens_bipolar.runs.finetuning import start_of
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep

_MEAN_SEQUENCES = 32  # of the training text, over which the mean is taken
FILMS = "films-and-sotu"  # the corpus that `steering_text` makes


class Kind(NamedTuple):
    """One kind of SAE."""

    label: str
    config: type[TrainingSAEConfig]
    widths: int = 1  # its width in units of the plan's


KINDS = {
    "abstopk": Kind("AbsTopK", AbsTopKTrainingSAEConfig),
    "topk": Kind("TopK", SparseTopKTrainingSAEConfig),
    "topk_2x": Kind("TopK, twice the width", SparseTopKTrainingSAEConfig, 2),
    "jumprelu": Kind("JumpReLU", JumpReLUTrainingSAEConfig),
    "sa_gsae": Kind("SA-GSAE", SignAwareGatedTrainingSAEConfig),
    "gated": Kind("Gated", GatedL0TrainingSAEConfig),
}
_GATED = ("sa_gsae", "gated")  # these take b_dec and thresholds from their first batch themselves


@dataclass(frozen=True, kw_only=True)
class SAEPlan:
    """The SAEs of one language model and layer.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    model: str  # bundled model, local directory or Hub name
    layer: int  # the SAEs read blocks.LAYER.hook_resid_post
    width: int  # latents
    k: int  # L0
    seeds: tuple[int, ...]  # of the first weights
    kinds: tuple[str, ...] = tuple(KINDS)  # SAEs of the first seed
    repeated: tuple[str, ...] = tuple(KINDS)  # SAEs of the other seeds
    jumprelu: Mapping[str, Any] = field(default_factory=dict)  # fields of the JumpReLU SAEs
    gated: Mapping[str, Any] = field(default_factory=dict)  # fields of the gated SAEs
    sweep: Mapping[str, Any] = field(default_factory=dict)  # fields of SweepConfig

    def __post_init__(self) -> None:
        for name in (*self.kinds, *self.repeated):
            require_choice(name, tuple(KINDS), "kinds")
        if not set(self.repeated) <= set(self.kinds) or not self.seeds:
            raise ConfigError("seeds must not be empty, and repeated must be among kinds")
        require_number(self.k, "k", 1, self.width)
        for kind in self.kinds:
            self.config_of(kind)(d_in=1)
        self.sweep_config()

    @property
    def hook(self) -> str:
        """Where the SAEs read."""
        return f"blocks.{self.layer}.hook_resid_post"

    def names(self) -> dict[str, tuple[str, int]]:
        """Kind and seed of each SAE by its name, such as `abstopk_seed0`."""
        return {
            f"{kind}_seed{seed}": (kind, seed)
            for seed in self.seeds
            for kind in (self.kinds if seed == self.seeds[0] else self.repeated)
        }

    def sweep_config(self) -> SweepConfig:
        """What the SAEs share."""
        return build(SweepConfig, {**self.sweep, "model": self.model}, "saes.sweep")

    def config_of(self, kind: str) -> Any:
        """A function of `d_in` that gives the configuration of an SAE."""
        chosen = KINDS[kind]
        fields: dict[str, Any] = {
            "d_sae": chosen.widths * self.width,
            "normalize_activations": "expected_average_only_in",
        }
        if kind in _GATED:
            fields |= {"l0_target": self.k, "threshold_init_l0": self.k, "b_dec_init": "mean"}
            fields |= self.gated
        elif kind == "jumprelu":
            fields |= self.jumprelu
        else:
            # At SAELens's 0.1 half of the latents die: see `architectures.training.start`.
            fields |= {"k": self.k, "decoder_init_norm": 1.0}
        return partial(_config, chosen.config, fields)


def _config(config: type[TrainingSAEConfig], fields: Mapping[str, Any], d_in: int) -> Any:
    return build(config, {**fields, "d_in": d_in}, config.__name__)


def train(plan: SAEPlan, directory: Path) -> list[dict[str, Any]]:
    """Train and measure the SAEs in `directory`, an ordinary run directory.

    Returns:
        The rows of `run_sweep`, each with its `kind` and `sae_seed`.
    """
    config = plan.sweep_config()
    if config.corpus == FILMS:
        config = replace(config, corpus=str(training_corpus()))
    saes = {
        name: SweepSAE(plan.hook, plan.config_of(kind), {"kind": kind, "sae_seed": seed})
        for name, (kind, seed) in plan.names().items()
    }
    starts = directory.with_name(f"{directory.name}-start")
    if not starts.exists():
        _write_starts(plan, config, saes, starts)
    started = {
        name: sae._replace(start=start_of(starts / name)) if (starts / name).exists() else sae
        for name, sae in saes.items()
    }
    return run_sweep(config, started, directory)


@torch.no_grad()
def _write_starts(
    plan: SAEPlan, config: SweepConfig, saes: Mapping[str, SweepSAE], directory: Path
) -> None:
    """Save the first weights of the SAEs, b_dec at the mean of the training text without sinks."""
    assets = load_assets(config, saes)
    train: Any = assets.tokens.train
    rows = torch.as_tensor(train[:_MEAN_SEQUENCES]["input_ids"])
    x = activations(assets.model, rows, plan.hook)[:, 1:].flatten(0, 1).float()
    x = x[x.norm(dim=-1) <= sink_threshold(x)]
    # The runner scales activations to this mean norm before an SAE sees them.
    mean = x.mean(0) * x.shape[1] ** 0.5 / x.norm(dim=-1).mean()
    with atomic_path(directory) as scratch:
        for name, (kind, seed) in plan.names().items():
            if kind in _GATED:
                continue
            torch.manual_seed(seed)
            cfg = saes[name].config(d_in=x.shape[1])
            sae = get_sae_training_class(cfg.architecture())[0](cfg)
            sae.b_dec.copy_(mean)
            sae.cfg.metadata.hook_name = plan.hook
            sae.save_inference_model(str(scratch / name))
            # These weights are in the units of scaled activations already.
            scaler = scratch / name / ACTIVATION_SCALER_CFG_FILENAME
            ActivationScaler(scaling_factor=1.0).save(str(scaler))
