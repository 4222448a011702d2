"""Many SAEs of one language model in shared forward passes: one run directory with all results.

SAEs may read different hooks and be of any architecture. Each finished step is a file in the run
directory (`directory` lists them), so a stopped sweep is taken up where it was.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import MultiSAETrainingRunnerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE

from sae_lens_bipolar import sparse
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.evaluation.text_reader import TextReader
from sae_lens_bipolar.files.atomic import read_json, remove_scratch
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.names import CHECKPOINTS, PROGRESS, SUMMARY
from sae_lens_bipolar.files.redaction import command_line
from sae_lens_bipolar.runs.assets import Assets, load_assets
from sae_lens_bipolar.runs.cached import open_cache
from sae_lens_bipolar.runs.checkpoints import remove_checkpoints
from sae_lens_bipolar.runs.devices import require_device, stays
from sae_lens_bipolar.runs.directory import require_same_run, start_run
from sae_lens_bipolar.runs.finetuning import begin
from sae_lens_bipolar.runs.measuring import measure_run, require_measured
from sae_lens_bipolar.runs.runner import RunDirectoryRunner
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE, describe, runner_config

__all__ = ["SweepConfig", "SweepSAE", "run_sweep", "train_and_measure"]


def run_sweep(
    config: SweepConfig, saes: Mapping[str, SweepSAE], run_dir: Path
) -> list[dict[str, Any]]:
    """Train and measure `saes` in `run_dir`; what is done already is not repeated.

    Where torchrun has started several processes of the same call, they train together: see
    `runs.distributed`.

    Returns:
        The rows of `results/summary.json` (on the first rank, elsewhere none), one per SAE in the
        order of `saes`: what `summarise` measures, `name`, `architecture`, `d_in`, `d_sae`,
        `hook_name`, `model`, `seed`, `n_train_tokens`, `train_seconds`, `train_mse` (mean of
        `mse_loss` over the last 5% of the logged steps), and the SAE's tags.

    Raises:
        ConfigError: if there is no SAE, this machine lacks a device, or `run_dir` holds a sweep
            with another configuration.
        ModelError: if the model has no such hook.
        LockError: if another process works in `run_dir`; names it.
        RankError: if another rank ended, or is not set up like this one.
    """
    if not saes:
        raise ConfigError("a sweep of no SAEs is not allowed: give at least one")
    resolved = {**config.record(), "saes": {name: describe(saes, name) for name in saes}}
    if not _is_one_of_several():
        return _run(config, saes, run_dir, resolved, RunDirectoryRunner)
    from sae_lens_bipolar.runs.distributed.launch import joined
    from sae_lens_bipolar.runs.distributed.runner import DistributedRunner

    with joined(config.device, resolved, run_dir) as ranks:
        if config.sae_devices:
            raise ConfigError(
                f"sae_devices={list(config.sae_devices)} is not allowed on several ranks, which "
                "share every SAE: start one process, or leave it out"
            )
        trains = ranks.is_first and not (run_dir / CHECKPOINTS).exists()
        (trains,) = ranks.total_of(trains)
        on_ranks = partial(DistributedRunner, ranks)
        if ranks.is_first:
            return _run(config, saes, run_dir, resolved, on_ranks)
        if trains:
            _train(config, saes, load_assets(config, saes), run_dir, on_ranks)
        return []


def _is_one_of_several() -> bool:
    """Whether torchrun, or a launcher like it, has started several processes."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


Runner = Callable[..., RunDirectoryRunner]


def _run(
    config: SweepConfig,
    saes: Mapping[str, SweepSAE],
    run_dir: Path,
    resolved: Mapping[str, Any],
    runner: Runner,
) -> list[dict[str, Any]]:
    require_same_run(run_dir, resolved)
    with lock_run(run_dir):
        if not (run_dir / SUMMARY).exists():
            for device in config.sae_devices:
                require_device(device, "sae_devices")
            assets = load_assets(config, saes)
            start_run(run_dir, resolved, command_line())
            train_and_measure(config, saes, assets, run_dir, runner)
        require_measured(run_dir)
        return read_json(run_dir / SUMMARY)


def train_and_measure(
    config: SweepConfig,
    saes: Mapping[str, SweepSAE],
    assets: Assets,
    run_dir: Path,
    runner: Runner = RunDirectoryRunner,
    reader: TextReader | None = None,
) -> None:
    """Train into `run_dir/checkpoints`, then measure into `run_dir/results`; skip what is done.

    A `reader` keeps what it reads of the held-out text for whoever reads it next.
    """
    remove_scratch(run_dir)
    if not (run_dir / CHECKPOINTS).exists():
        _train(config, saes, assets, run_dir, runner)
    remove_checkpoints(run_dir / PROGRESS)
    if not (run_dir / SUMMARY).exists():
        measure_run(config, saes, assets, run_dir, reader)


def _train(
    config: SweepConfig,
    saes: Mapping[str, SweepSAE],
    assets: Assets,
    run_dir: Path,
    runner: Runner,
) -> None:
    cfg = runner_config(config, saes, assets.model)
    keep = config.keep_checkpoints
    one = runner(
        cfg,
        run_dir,
        assets.model,
        assets.tokens.train,
        repeat=config.repeat,
        activations=open_cache(config),
        saes=_started(cfg, saes, bool(config.sae_devices)),
        keep=None if keep is None else Path(keep).expanduser(),
    )
    with sparse.mode(config.arithmetic):  # type: ignore[arg-type]
        one.run()


def _started(
    cfg: MultiSAETrainingRunnerConfig, saes: Mapping[str, SweepSAE], placed: bool
) -> dict[str, TrainingSAE[Any]] | None:
    """The SAEs to train, if any begins with one on disk, or each has its device; otherwise None,
    and SAELens makes them."""
    if all(sae.start is None for sae in saes.values()) and not placed:
        return None
    torch.manual_seed(cfg.seed)
    found = {
        name: get_sae_training_class(cfg.saes[name].architecture())[0](cfg.saes[name])
        if sae.start is None
        else begin(sae.start, cfg.saes[name])
        for name, sae in saes.items()
    }
    return {name: stays(sae) for name, sae in found.items()} if placed else found
