"""The measurements of `gpu_check.py`: steps beside others, and one step by kernel."""

from collections.abc import Callable
from typing import Any

import torch

from recipes.speed.contestants import SPARSIFY, Options, Shape, activations, make_step
from recipes.speed.training_step import extra_peak_memory, summary
from sae_lens_bipolar import sparse
from sae_lens_bipolar.runs.step_times import WARM_UP, products_in, seconds
from sae_lens_bipolar.sparse import triton

PRECISIONS = ("bfloat16", "tf32", "float32")
# What each of ours is compared with.
BESIDE = {
    "our abstopk": ("SAELens abstopk", SPARSIFY),
    "our sign_aware_gated": ("SAELens gated",),
}
OURS = tuple(BESIDE)
# What no step of a top-k SAE can do without.
FLOOR = ("encoder product", "one reading of the product", "Adam")
_KERNELS = 30  # the most expensive ones that a profile names


def modes(shape: Shape, device: str) -> list[sparse.Mode]:
    """The arithmetics that can run here: on a CPU torch's own takes the kernels' place."""
    kernels = triton.usable(torch.device(device), shape.d_in) and not triton.is_interpreted()
    return ["triton" if kernels else "sparse", "dense"]


def steps(shape: Shape, precision: str, options: Options) -> dict[str, Any]:
    """Seconds of every contestant's step, taken in turn, and memory beyond what is held.

    A contestant that fails, or is not installed, is reported and leaves the rest as it is.
    """
    failed: dict[str, str] = {}
    with products_in(precision):
        made = _contestants(shape, options, failed)
        batches = [activations(shape, options, seed) for seed in range(2)]
        floor = _floor(shape, precision, options)
        times: dict[str, list[float]] = {name: [] for name in (*made, *floor)}
        l0: dict[str, float] = {}
        for i in range(WARM_UP + options.steps):
            x = batches[i % 2]
            for name, work in floor.items():
                times[name].append(seconds(work, options.device))
            for name, (mode, step) in list(made.items()):
                last: dict[str, Any] = {}
                try:
                    with sparse.mode(mode):
                        times[name].append(
                            seconds(lambda: last.update(output=step(x)), options.device)  # noqa: B023
                        )
                except Exception as error:  # of one contestant, which is reported
                    failed[name] = _sentence(error)
                    del made[name], times[name]
                    continue
                if name.startswith(OURS):
                    acts = last["output"].feature_acts
                    l0[name] = acts.bool().float().sum(-1).mean().item()
        times = {name: values[WARM_UP:] for name, values in times.items()}
        labels: dict[str, sparse.Mode] = {name: mode for name, (mode, _) in made.items()}
        del made, floor
        memory = _memory(shape, labels, options, failed)
    for what, why in failed.items():
        print(f"{what} failed: {why}", flush=True)
    if not labels:
        raise SystemExit("no contestant ran")
    found = {
        "seconds": {name: summary(values) for name, values in times.items()},
        "speedup": _speedups(times),
        "over_floor": _over_floor(times),
        "l0": l0,
        "extra_peak_bytes": memory,
        "failed": failed,
    }
    for name, time in found["seconds"].items():
        print(f"{name:32s} {1000 * time['median']:8.2f} ms", flush=True)
    return found


def _contestants(
    shape: Shape, options: Options, failed: dict[str, str]
) -> dict[str, tuple[sparse.Mode, Callable[[torch.Tensor], Any]]]:
    """Each contestant's arithmetic and step, by name."""
    ours = [(f"{name} ({mode})", mode) for name in OURS for mode in modes(shape, options.device)]
    others: list[tuple[str, sparse.Mode]] = [
        (name, "dense") for names in BESIDE.values() for name in names
    ]
    made = {}
    for label, mode in [*ours, *others]:
        try:
            with sparse.mode(mode):
                made[label] = (mode, make_step(label.partition(" (")[0], shape, options))
        except Exception as error:  # such as a package that is not installed
            failed[label] = _sentence(error)
    return made


def _floor(shape: Shape, precision: str, options: Options) -> dict[str, Callable[[], Any]]:
    """What `FLOOR` names, each as a function to time."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = activations(shape, options).to(dtype)
    W_enc = torch.randn(shape.d_in, shape.d_sae, device=options.device, dtype=dtype)
    u = x @ W_enc
    sizes = (shape.d_in, shape.d_sae), (shape.d_sae, shape.d_in), (shape.d_sae,), (shape.d_in,)
    parameters = [torch.nn.Parameter(torch.randn(size, device=options.device)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    works: tuple[Callable[[], Any], ...] = (lambda: x @ W_enc, lambda: u.amax(1), adam.step)
    return dict(zip(FLOOR, works, strict=True))


def _speedups(times: dict[str, list[float]]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each of ours over what it is compared with: ratios of neighbours."""
    return {
        ours: {
            other: summary([b / a for a, b in zip(times[ours], times[other], strict=True)])
            for other in BESIDE[ours.partition(" (")[0]]
            if other in times
        }
        for ours in times
        if ours.startswith(OURS)
    }


def _over_floor(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of our top-k steps, over the sum of `FLOOR`."""
    least = [sum(parts) for parts in zip(*(times[name] for name in FLOOR), strict=True)]
    return {
        name: summary([a / b for a, b in zip(values, least, strict=True)])
        for name, values in times.items()
        if name.startswith("our abstopk")
    }


def _memory(
    shape: Shape, labels: dict[str, sparse.Mode], options: Options, failed: dict[str, str]
) -> dict[str, int]:
    found = {}
    for label, mode in labels.items():
        try:
            with sparse.mode(mode):
                found[label] = extra_peak_memory(label.partition(" (")[0], shape, options)
        except Exception as error:  # of one contestant, which is reported
            failed[f"memory of {label}"] = _sentence(error)
    return found


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
                for _ in range(WARM_UP):
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
        if cuda and (not str(event.device_type).endswith("CUDA") or "#" in event.key):
            continue  # an operator, or a range, whose kernels have rows of their own
        taken = event.self_device_time_total if cuda else event.self_cpu_time_total
        row = {"name": event.key[:200], "microseconds": taken / n_steps}
        rows.append({**row, "launches": event.count / n_steps})
    return sorted(rows, key=lambda row: -row["microseconds"])[:_KERNELS]


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
