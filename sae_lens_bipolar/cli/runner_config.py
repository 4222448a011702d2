"""SAELens's runner configuration from the flags of `train` and an optional YAML file.

SAELens parses the flags. A YAML file becomes flags, and everything is checked before a model runs.
"""

import argparse
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import DTYPE_MAP
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_bipolar.architectures.registry import require_loaded
from sae_lens_bipolar.architectures.training.checks import check_fields, require_k
from sae_lens_bipolar.cli import flags as table
from sae_lens_bipolar.errors import (
    BipolarError,
    ConfigError,
    DataError,
    did_you_mean,
    require_choice,
    require_number,
)
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.runs.devices import require_device
from sae_lens_bipolar.runs.finetuning import finetuning_config, training_architecture

_AT_LEAST_ONE = (
    *("training_tokens", "train_batch_size_tokens", "store_batch_size_prompts"),
    *("n_batches_in_buffer", "n_batches_for_norm_estimate", "n_eval_batches"),
    *("dead_feature_window", "feature_sampling_window", "n_restart_cycles"),
)
_AT_LEAST_ZERO = ("lr_warm_up_steps", "lr_decay_steps", "n_checkpoints", "seed")
# The option that sets L0, of the other kinds of architecture.
_SPARSITY = {"k": "l0_target", "l0_target": "k", "target_l0": "l0_target"}
_SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
# SAELens's defaults that would run code from a data set or need an account; flags change them.
_SAFE_DEFAULTS = ("--dataset_trust_remote_code", "false", "--log_to_wandb", "false")


def parse(
    flags: Sequence[str], config_file: Path | None = None
) -> LanguageModelSAERunnerConfig[TrainingSAEConfig]:
    """SAELens's runner configuration from flags and an optional YAML file.

    With `from_pretrained_path` the SAE's configuration is that of the SAE there, with the given
    settings applied.

    Raises:
        ConfigError: naming the architecture, flag or key that is not known, or the value at fault.
    """
    return _parse(all_flags(flags, config_file))


def all_flags(flags: Sequence[str], config_file: Path | None, defaults: bool = True) -> list[str]:
    """Flags of the command line, after those of a YAML file and before them our own defaults."""
    before = _SAFE_DEFAULTS if defaults else ()
    return [*before, *(_yaml_flags(config_file) if config_file else ()), *flags]


def _parse(given: list[str]) -> LanguageModelSAERunnerConfig[TrainingSAEConfig]:
    named = table.named(given)
    start = _last(given, "--from_pretrained_path")
    if start is not None and "sae" not in named:
        given = ["--architecture", training_architecture(start), *given]
    _require_architecture(given)
    _require_counts(given)
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # argparse prints its usage, several screens, and why
            cfg = _parse_cfg_args(given)
        if "dtype" in named and "sae.dtype" not in named:
            cfg.sae.dtype = cfg.dtype
        if cfg.from_pretrained_path is not None:
            fields_of = table.sae_flags()
            asked = {fields_of[name]: None for name in named if name in fields_of}
            asked |= {"dtype": None} if "dtype" in named else {}
            values = {name: getattr(cfg.sae, name) for name in asked if hasattr(cfg.sae, name)}
            cfg.sae = finetuning_config(cfg.from_pretrained_path, cfg.sae.architecture(), values)
        check_runner(cfg)
        return cfg
    except SystemExit as stop:
        if stop.code:
            reason = said.getvalue().strip().rpartition("error: ")[2]
            architecture = _architecture(given)
            raise ConfigError(
                f"train: {reason} (architecture {architecture!r}){_near(reason, architecture)}; "
                f"see train --help, and train --architecture {architecture} --help"
            ) from stop
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, BipolarError):
            raise
        raise ConfigError(f"train: {error}") from error


def _near(reason: str, architecture: str) -> str:
    """What an option that `reason` calls unknown may have been meant for."""
    said, _, words = reason.partition("unrecognized arguments: ")
    flag = re.match(r"--?([A-Za-z][\w-]*)", words)
    if said or flag is None:
        return ""
    name = flag[1].replace("-", "_")
    options = {field.name for field in fields(SAE_TRAINING_CLASS_REGISTRY[architecture][1])}
    if (twin := _SPARSITY.get(name)) in options:
        return f"; its option for how many latents fire is {twin}"
    return did_you_mean(name, {*table.runner_flags(), *options})


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
        require_device(getattr(cfg, name), name)


def _last(flags: Sequence[str], *names: str) -> str | None:
    """The value of an option, given as `--name value` or `--name=value`; the last one counts."""
    found = None
    for text, following in zip(flags, [*flags[1:], ""], strict=True):
        name, equals, value = text.partition("=")
        if name in names:
            found = value if equals else following
    return found


def _architecture(flags: Sequence[str]) -> str:
    return _last(flags, "--architecture", "--sae") or "standard"  # SAELens's default


def _require_architecture(flags: Sequence[str]) -> None:
    value = _architecture(flags)
    require_loaded(value)
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
        options = load_yaml(file)
    except FileNotFoundError as error:
        raise ConfigError(f"config={file} does not exist") from error
    except (OSError, DataError) as error:
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
