"""The measurements of `gpu_check.py`: steps beside others, and one step by kernel."""

from typing import Any

import torch

from recipes.speed.contestants import SPARSIFY, Options, Shape, activations, make_step
from recipes.speed.report import line_of_comparison
from recipes.speed.training_step import compare, extra_peak_memory
from sae_lens_bipolar import sparse
from sae_lens_bipolar.runs.step_times import products_in
from sae_lens_bipolar.sparse import triton

PRECISIONS = ("bfloat16", "tf32", "float32")
PAIRS = (
    ("our abstopk", "SAELens abstopk"),
    ("our abstopk", SPARSIFY),
    ("our sign_aware_gated", "SAELens gated"),
)
_KERNELS = 30  # the most expensive ones that a profile names


def modes(shape: Shape, device: str) -> list[sparse.Mode]:
    """The arithmetics that can run here: on a CPU torch's own takes the kernels' place."""
    kernels = triton.usable(torch.device(device), shape.d_in) and not triton.is_interpreted()
    return ["triton" if kernels else "sparse", "dense"]


def steps(shape: Shape, precision: str, options: Options) -> dict[str, Any]:
    """Our step by arithmetic beside others' steps, in turn; and memory beyond what is held.

    A contestant that fails, or is not installed, is reported and leaves the rest as it is.
    """
    comparisons, failed, memory = [], {}, {}
    with products_in(precision):
        for mode in modes(shape, options.device):
            for ours, reference in PAIRS:
                try:
                    with sparse.mode(mode):
                        found = compare(ours, reference, shape, options)
                except Exception as error:  # of a part, which is reported
                    failed[f"{ours} ({mode}) beside {reference}"] = _sentence(error)
                    continue
                comparisons.append({"arithmetic": mode, **found})
                print(line_of_comparison(mode, found), flush=True)
            for name in ("our abstopk", *(("SAELens abstopk", SPARSIFY) * (mode == "dense"))):
                label = f"{name} ({mode})" if name.startswith("our") else name
                try:
                    with sparse.mode(mode):
                        memory[label] = extra_peak_memory(name, shape, options)
                except Exception as error:
                    failed[f"memory of {label}"] = _sentence(error)
    for what, why in failed.items():
        print(f"{what} failed: {why}", flush=True)
    if not comparisons:
        raise SystemExit("no comparison was done")
    return {"comparisons": comparisons, "extra_peak_bytes": memory, "failed": failed}


def profile(shape: Shape, precision: str, options: Options) -> dict[str, Any]:
    """Microseconds of a step by kernel (on a CPU: by operator), and launches, by arithmetic."""
    cuda = torch.device(options.device).type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    found: dict[str, Any] = {}
    x = activations(shape, options)
    with products_in(precision):
        for mode in modes(shape, options.device):
            with sparse.mode(mode):
                step = make_step("our abstopk", shape, options)
                for _ in range(3):
                    step(x)
                with torch.profiler.profile(activities=kinds) as watch:
                    for _ in range(options.steps):
                        step(x)
                    if cuda:
                        torch.cuda.synchronize()
            found[mode] = _by_kernel(watch, options.steps, cuda)
            print(mode, found[mode][:5], flush=True)
    return {"microseconds_per_step": found}


def _by_kernel(watch: Any, n_steps: int, cuda: bool) -> list[dict[str, Any]]:
    rows = []
    for event in watch.key_averages():
        if cuda and not str(event.device_type).endswith("CUDA"):
            continue  # an operator, whose kernels have rows of their own
        taken = event.self_device_time_total if cuda else event.self_cpu_time_total
        row = {"name": event.key[:200], "microseconds": taken / n_steps}
        rows.append({**row, "launches": event.count / n_steps})
    return sorted(rows, key=lambda row: -row["microseconds"])[:_KERNELS]


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
