"""A finished run as `demo` would leave it, with untrained SAEs of every kind that is published."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from safetensors.torch import save_file

from sae_lens_bipolar.architectures.registry import find
from sae_lens_bipolar.files.digests import checkpoint_digest
from sae_lens_bipolar.runs.sources import find_saes
from sae_lens_bipolar.saebench import BenchConfig
from tests.architecture_list import ARCHITECTURE_LIST

D_IN, D_SAE = 576, 24  # as wide as the model that the metadata name
NAMES = (
    *("abstopk", "bi_jumprelu", "bi_topk", "sign_aware_gated", "unrolled_abstopk"),
    *("gated", "topk"),
)
SIGNED = tuple(name for name in NAMES if find(name).signed)
METADATA = {
    "model_name": "smollm2-135m-instruct",
    "hook_name": "blocks.12.hook_resid_post",
    "dataset_path": "sotu",
    "context_size": 128,
    "exclude_special_tokens": True,
    "prepend_bos": True,
}


def write_run(run_dir: Path, names: Sequence[str] = NAMES, **metadata: Any) -> Path:
    """Write the run and return its directory; `metadata` changes that of the SAEs."""
    entries = {entry.saved_as: entry for entry in reversed(ARCHITECTURE_LIST)}  # first one wins
    torch.manual_seed(0)
    for name in names:
        cfg = entries[name].config(d_in=D_IN, d_sae=D_SAE)
        for key, value in (METADATA | metadata).items():
            setattr(cfg.metadata, key, value)
        sae = SAE_TRAINING_CLASS_REGISTRY[cfg.architecture()][0](cfg)
        with torch.no_grad():
            for parameter in sae.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.rand_like(parameter))
        sae.save_inference_model(run_dir / "checkpoints" / name)
        sparsity = {"sparsity": torch.full((D_SAE,), -1.5)}
        save_file(sparsity, run_dir / "checkpoints" / name / "sparsity.safetensors")
    runner = {"training_tokens": 153_600, "lr": 1e-3, "seed": 3, "train_batch_size_tokens": 512}
    runner |= {"output_path": "/home/ada/runs/x/checkpoints", "saes": {n: {} for n in names}}
    (run_dir / "checkpoints/runner_cfg.json").write_text(json.dumps(runner))
    (run_dir / "config.yaml").write_text("model: smollm2-135m-instruct\nseed: 3\n")
    environment = {
        "command": "sae-lens-bipolar demo --output /home/ada/runs/x",
        "seed": 3,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "device": "cpu",
        "packages": {"sae-lens": "6.54.12", "torch": "2.13.0"},
    }
    (run_dir / "environment.json").write_text(json.dumps(environment))
    lines = [{"sae": name, "step": 1, "n_tokens": 512} for name in names]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text + '{"torn')  # as a killed process leaves it
    (run_dir / "results/latents").mkdir(parents=True)
    (run_dir / "results/latents/topk.json").write_text('{"latents": "a text of somebody"}')
    write_latents(run_dir, names[0])
    summary = [_summary_row(name, i) for i, name in enumerate(names)]
    (run_dir / "results/census").mkdir()
    for row in summary:
        row["digest"] = checkpoint_digest(run_dir / "checkpoints" / row["name"])
        census: dict[str, Any] = {"n_tokens": 24_000, "digest": row["digest"]}
        census["positive_rate"] = [0.5] * D_SAE
        census["negative_rate"] = [0.25 if row["name"] in SIGNED else 0.0] * D_SAE
        (run_dir / f"results/census/{row['name']}.json").write_text(json.dumps(census))
    (run_dir / "results/summary.json").write_text(json.dumps(summary))
    return run_dir


def write_latents(run_dir: Path, name: str, **changed: Any) -> None:
    """Two latents of one SAE as `demo` describes them."""
    context = {"tokens": [" a text of somebody"], "activations": [1.0], "peak": 0, "sequence": 0}
    latent = {
        "index": 7,
        "positive_rate": 0.0123,
        "negative_rate": 0.2,
        "histogram": {"edges": [-1.0, 0.0, 1.0], "counts": [5, 1]},
        "contexts": {"positive": [context], "negative": [context]},
        "raises": [[" war", 2.0], ["`|", 1.0]],
        "lowers": [[" peace", -2.0]],
    }
    latents = [latent | changed, {**latent, "index": 9, "negative_rate": 0.0} | changed]
    digest = checkpoint_digest(run_dir / "checkpoints" / name)
    content = {"name": name, "digest": digest, "latents": latents}
    (run_dir / f"results/latents/{name}.json").write_text(json.dumps(content))


def _summary_row(name: str, i: int) -> dict[str, Any]:
    measured = {"l0": 4.0 + i, "nmse": 0.1 + i / 100, "r2": 0.9 - i / 100, "loss_recovered": 0.95}
    return {
        "name": name,
        "architecture": name,
        "d_in": D_IN,
        "d_sae": D_SAE,
        **measured,
        "dead_fraction": 0.25,
        "bipolar_fraction": 0.5 if name in SIGNED else 0.0,
        "n_train_tokens": 153_600,
        "n_eval_tokens": 24_000,
        "n_loss_tokens": 3000,
        "n_sink_tokens": 12,
        "with_sinks": measured,
        "seed": 3,
    }


Metric = tuple[str, int | None, float]
BENCH_COMMAND = (
    "sae-lens-bipolar bench /home/ada/runs/x --scale small --output /home/ada/runs/x/bench"
)


def write_bench(
    output: Path,
    checkpoint: Path,
    suite: str,
    protocols: Sequence[str],
    metrics: Sequence[Metric],
    seed: int = 42,
    **config: Any,
) -> Path:
    """What `bench` leaves of one finished suite on one SAE, and return its record's path.

    `protocols`: under which its numbers are reported; more than one for a non-negative SAE.
    """
    source = find_saes([checkpoint])[0]
    shared = {"sae": source.name, "architecture": source.name, "model": "m", "hook": "h"}
    run = output / "saebench" / suite / protocols[0] / source.name
    run.mkdir(parents=True)
    record = {
        **shared,
        "suite": suite,
        "protocols": list(protocols),
        "seed": seed,
        "identity": {"SAE": source.digest},
        "metrics": [list(metric) for metric in metrics],
    }
    (run / "run.json").write_text(json.dumps(record))
    plain = {name: value for name, value in vars(BenchConfig()).items() if name != "suites"}
    text = json.dumps(plain | config)  # JSON is YAML
    (output / "config.yaml").write_text(text)
    (output / "environment.json").write_text(json.dumps({"command": BENCH_COMMAND}))
    return run / "run.json"
