"""Measuring the SAEs of a run on held-out text: `results/summary.json` and one census per SAE."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sae_lens_bipolar.errors import CheckpointError
from sae_lens_bipolar.evaluation.reconstruction import Measurement, Reconstruction, measure
from sae_lens_bipolar.evaluation.text_reader import BATCH, TextReader
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.digests import DIGEST, checkpoint_digest, is_of
from sae_lens_bipolar.files.names import CENSUS, CHECKPOINTS, METRICS_FILE, RESULTS, SUMMARY
from sae_lens_bipolar.runs.assets import Assets, held_out
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE

_TAIL = 0.05  # share of the logged steps that `train_mse` averages over


def measure_run(
    config: SweepConfig,
    saes: Mapping[str, SweepSAE],
    assets: Assets,
    run_dir: Path,
    reader: TextReader | None = None,
) -> None:
    """Measure the saved checkpoints on held-out text; write `results/` and a census per SAE.

    Every row and census carries the digest of the checkpoint it was measured on.
    """
    tokens = held_out(config, assets)
    batch = config.options.get("eval_batch_size_prompts") or BATCH
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
            reader=reader,
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


def summarise(measurement: Measurement) -> dict[str, Any]:
    """The measured keys of one row of `results/summary.json`; None where a value is not finite."""

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
