"""Whether reading cached activations keeps up with eight SAEs that train on them.

Caches a hook of SmolLM2 (once), trains eight AbsTopK SAEs on it in one sweep, and times the same
batches read alone: from the opening of the cache, its checksums included.

    results/cached_activations.json   seconds per batch: reading, and a step of all eight

    python -m recipes.speed.cached_activations --output runs/speed/cached_activations
"""

import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from recipes.common.arguments import command, parse
from sae_lens_bipolar import AbsTopKTrainingSAEConfig
from sae_lens_bipolar.files.atomic import write_json
from sae_lens_bipolar.inputs.activations import CachedActivations
from sae_lens_bipolar.inputs.caching import CacheConfig, cache_activations
from sae_lens_bipolar.runs.directory import start_run
from sae_lens_bipolar.runs.sweep import run_sweep
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE

HOOK = "blocks.12.hook_resid_post"
N_SAES = 8


def measure(output: Path, steps: int, batch: int, d_sae: int, dtype: str) -> dict[str, Any]:
    """Seconds per batch for reading and for a step of `N_SAES` SAEs, and their ratio."""
    tokens = (steps + 1) * batch
    folder = output / "cache"
    cache_activations(CacheConfig((HOOK,), tokens=tokens, dtype=dtype, held_out=16), folder)
    config = SweepConfig(
        training_tokens=steps * batch,
        train_batch_size_tokens=batch,
        n_batches_in_buffer=max(64, -(-batch // 100)),
        n_checkpoints=0,
        eval_sequences=8,
        loss_sequences=1,
        activations=str(folder),
    )
    saes = {
        f"k{16 + i}": SweepSAE(HOOK, partial(AbsTopKTrainingSAEConfig, d_sae=d_sae, k=16 + i))
        for i in range(N_SAES)
    }
    trained = sum(row["train_seconds"] for row in run_sweep(config, saes, output / "sweep"))
    start = time.perf_counter()
    batches = CachedActivations(folder).batches(
        [HOOK], batch, seed=0, mixed_rows=config.n_batches_in_buffer
    )
    for _ in islice(batches, steps):
        pass
    read = time.perf_counter() - start
    return {
        "steps": steps,
        "batch": batch,
        "d_sae": d_sae,
        "dtype": dtype,
        "saes": N_SAES,
        "threads": torch.get_num_threads(),
        "reading_seconds_per_batch": read / steps,
        "training_seconds_per_batch": trained / steps,
        "training_over_reading": trained / read,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("speed.cached_activations", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="run directory")
    parser.add_argument("--steps", type=int, default=8, help="training steps")
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step")
    parser.add_argument("--d-sae", type=int, default=4608, help="latents of each SAE")
    parser.add_argument("--dtype", default="float32", help="of the cache: float32 or bfloat16")
    options = parse(parser, arguments)
    sizes = {key: getattr(options, key) for key in ("steps", "batch", "d_sae", "dtype")}
    start_run(options.output, {**sizes, "seed": 0}, options.command)
    found = measure(options.output, **sizes)
    write_json(options.output / "results/cached_activations.json", found)
    print(
        f"reading {found['reading_seconds_per_batch'] * 1e3:.1f} ms per batch, training "
        f"{N_SAES} SAEs {found['training_seconds_per_batch'] * 1e3:.0f} ms: "
        f"{found['training_over_reading']:.0f} times as long"
    )


if __name__ == "__main__":
    main()
