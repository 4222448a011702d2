"""`sae-lens-bipolar train`: SAELens's own training flags, with our architectures, models and data.

SAELens parses the flags and trains; here a YAML file becomes flags, the model comes from
`models.load_model` and local text is tokenised, and everything is checked before the model runs.
"""

import argparse
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_lens import LanguageModelSAETrainingRunner
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import DTYPE_MAP
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_bipolar.architectures.training.checks import check_fields, require_k
from sae_lens_bipolar.errors import ConfigError, did_you_mean, require_choice, require_number
from sae_lens_bipolar.evaluation.reconstruction import measure
from sae_lens_bipolar.files.atomic import explaining_full_disk, write_json
from sae_lens_bipolar.files.names import ENVIRONMENT_FILE, SUMMARY
from sae_lens_bipolar.files.redaction import command_line
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import check_hook, load_model, tokenizer_of
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.directory import environment
from sae_lens_bipolar.runs.sweep import summarise

_AT_LEAST_ONE = (
    *("training_tokens", "train_batch_size_tokens", "store_batch_size_prompts"),
    *("n_batches_in_buffer", "n_batches_for_norm_estimate", "n_eval_batches"),
    *("dead_feature_window", "feature_sampling_window", "n_restart_cycles"),
)
_AT_LEAST_ZERO = ("lr_warm_up_steps", "lr_decay_steps", "n_checkpoints", "seed")
_SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
# SAELens's defaults that would run code from a data set or need an account; flags change them.
_SAFE_DEFAULTS = ("--dataset_trust_remote_code", "false", "--log_to_wandb", "false")


def train(flags: Sequence[str], config_file: Path | None = None) -> None:
    """Train one SAE as `python -m sae_lens.llm_sae_training_runner` would, and say how it went.

    Beside SAELens's files the output directory gets `environment.json` and, for local text,
    `results/summary.json`: what `publish` tells of the SAE.

    Args:
        flags: SAELens's flags; `--architecture` is any registered name, `--model_name` a bundled
            model, local directory or Hub name, `--dataset_path` "sotu", a local file or directory
            (tokenised here, a tenth of its documents held out), or a Hub data set.
        config_file: YAML of the same options (`sae:` holds the architecture's); flags win.

    Raises:
        ConfigError: naming an unknown architecture, flag or YAML key, or a wrong `d_in`.
        ModelError, DataError: as `load_model` and `load_documents`.
    """
    cfg = parse(flags, config_file)
    model = load_model(cfg.model_name, device=cfg.llm_device or cfg.device, **_load_options(cfg))
    d_in = check_hook(model, cfg.hook_name)
    if cfg.hook_head_index is None and cfg.sae.d_in != d_in:
        raise ConfigError(f"d_in={cfg.sae.d_in}, but {cfg.hook_name} has width {d_in}")
    tokens = None
    if _is_local(cfg.dataset_path):
        tokens = split_tokens(
            load_documents(cfg.dataset_path),
            tokenizer_of(model),
            context_size=cfg.context_size,
            prepend_bos=cfg.prepend_bos,
            seed=cfg.seed,
        )
    runner = LanguageModelSAETrainingRunner(
        cfg,
        override_model=model,
        override_dataset=None if tokens is None else tokens.train,
    )
    with explaining_full_disk(cfg.output_path or cfg.checkpoint_path or "."):
        runner.run()
    if cfg.output_path is None:
        return
    output = Path(cfg.output_path)
    write_json(output / ENVIRONMENT_FILE, environment(command_line(), seed=cfg.seed))
    print(f"saved: {output}")
    if tokens is not None:
        held_out = tokens.held_out[:32]["input_ids"]
        name = cfg.sae.architecture()
        found = measure(
            {name: load_sae(cfg.output_path, cfg.device)}, model, torch.as_tensor(held_out)
        )
        row = {"name": output.resolve().name, "architecture": name}
        row |= {"d_in": cfg.sae.d_in, "d_sae": cfg.sae.d_sae, **summarise(found[name])}
        row |= {"n_train_tokens": cfg.training_tokens, "seed": cfg.seed}
        row |= {"model": cfg.model_name, "hook_name": cfg.hook_name}
        write_json(output / SUMMARY, [row])
        figures = found[name].without_sinks
        print(
            f"held out ({figures.n_tokens} tokens, attention sinks left out): "
            f"nMSE {figures.nmse:.4f}, R^2 {figures.r2:.4f}, L0 {figures.l0:.1f}, "
            f"loss recovered {figures.loss_recovered:.4f}, "
            f"dead {found[name].dead_fraction:.1%}, two-sided {found[name].bipolar_fraction:.1%}"
        )


def parse(
    flags: Sequence[str], config_file: Path | None = None
) -> LanguageModelSAERunnerConfig[TrainingSAEConfig]:
    """SAELens's runner configuration from flags and an optional YAML file.

    Raises:
        ConfigError: naming the architecture, flag or key that is not known, or the value at fault.
    """
    given = [*_SAFE_DEFAULTS, *(_yaml_flags(config_file) if config_file else ()), *flags]
    _require_architecture(given)
    _require_counts(given)
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # argparse prints its usage, several screens, and why
            cfg = _parse_cfg_args(given)
        check_runner(cfg)
        return cfg
    except SystemExit as stop:
        if stop.code:
            reason = said.getvalue().strip().rpartition("error: ")[2]
            raise ConfigError(
                f"train: {reason} (architecture {_architecture(given)!r}); see train --help"
            ) from stop
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"train: {error}") from error


def check_runner(cfg: LanguageModelSAERunnerConfig[TrainingSAEConfig]) -> None:
    """Check the fields that SAELens would only trip over while it trains.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """
    check_fields(cfg.sae)
    if "k" in vars(cfg.sae):
        require_k(cfg.sae.k, cfg.sae.d_sae, integer=False)  # type: ignore[attr-defined]
    for name in _AT_LEAST_ONE:
        require_number(getattr(cfg, name), name, 1)
    for name in _AT_LEAST_ZERO:
        require_number(getattr(cfg, name), name, 0)
    require_number(cfg.context_size, "context_size", 2)
    if cfg.training_tokens < cfg.train_batch_size_tokens:
        raise ConfigError(
            f"training_tokens={cfg.training_tokens} is less than one batch of "
            f"train_batch_size_tokens={cfg.train_batch_size_tokens}"
        )
    require_number(cfg.activations_mixing_fraction, "activations_mixing_fraction", 0, 1)
    require_number(cfg.lr, "lr", 0, exclusive=True)
    for name in ("adam_beta1", "adam_beta2"):
        require_number(getattr(cfg, name), name, 0, math.nextafter(1, 0))
    require_choice(cfg.lr_scheduler_name, _SCHEDULERS, "lr_scheduler_name")
    require_choice(cfg.dtype, tuple(DTYPE_MAP), "dtype")
    for name in ("device", "llm_device", "act_store_device"):
        _require_device(getattr(cfg, name), name)


def _require_device(value: str | None, field: str) -> None:
    try:
        torch.empty(0, device=value)
    except (AssertionError, RuntimeError) as error:  # an unknown name, or no such hardware here
        said = str(error).splitlines()[0]
        raise ConfigError(f"{field}={value!r} is not allowed on this machine: {said}") from None


def _architecture(flags: Sequence[str]) -> str:
    given = [value for flag, value in pairwise(flags) if flag in ("--architecture", "--sae")]
    return given[-1] if given else "standard"  # SAELens's default


def _require_architecture(flags: Sequence[str]) -> None:
    value = _architecture(flags)
    if value not in SAE_TRAINING_CLASS_REGISTRY:
        raise ConfigError(
            f"architecture={value!r} is not registered; known: "
            f"{', '.join(sorted(SAE_TRAINING_CLASS_REGISTRY))}"
            f"{did_you_mean(value, SAE_TRAINING_CLASS_REGISTRY)}"
        )


def _require_counts(flags: Sequence[str]) -> None:
    """SAELens divides by some of these while it reads its options."""
    for flag, value in pairwise(flags):
        name = flag.lstrip("-").replace("-", "_")
        if name in _AT_LEAST_ONE and value.lstrip("-").isdigit():
            require_number(int(value), name, 1)


def _yaml_flags(file: Path) -> Iterator[str]:
    try:
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"config={file} does not exist") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config={file} cannot be read as YAML: {error}") from error
    if not isinstance(options, Mapping):
        raise ConfigError(f"config={file} holds {type(options).__name__}, expected a mapping")
    sae = options.get("sae") or {}
    if not isinstance(sae, Mapping):
        raise ConfigError(f"sae in {file} is {sae!r}, expected the architecture's options")
    for key, value in options.items():
        if key != "sae":
            yield from _flag(str(key), value)
    for key, value in sae.items():
        # `dtype` and `device` also name options of the runner
        yield from _flag(f"sae.{key}" if key in ("dtype", "device") else str(key), value)


def _flag(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    name = f"-{key}" if len(key) == 1 else f"--{key}"
    if isinstance(value, Mapping):
        return [name, json.dumps(value)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if key.removeprefix("sae.") not in _list_options():
            raise ConfigError(f"{key}={value!r} in the YAML file is a list; one value is expected")
        return [name, *map(str, value)]
    return [name, str(value)]


@cache
def _list_options() -> frozenset[str]:
    """Options that take several values, of the runner and of every architecture."""
    configs = [cfg_class for _, cfg_class in SAE_TRAINING_CLASS_REGISTRY.values()]
    known = [field for cfg in (LanguageModelSAERunnerConfig, *configs) for field in fields(cfg)]
    return frozenset(f.name for f in known if "list" in str(f.type) or "tuple" in str(f.type))


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
    return dataset_path == "sotu" or Path(dataset_path).expanduser().exists()


if __name__ == "__main__":
    train(sys.argv[1:])
