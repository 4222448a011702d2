"""Time one training step of this package's SAEs beside SAELens's and eai-sparsify's.

    python -m recipes.speed.training_step
    python -m recipes.speed.training_step --shapes pythia-70m gpt2 --steps 9 --output runs/speed
    python -m recipes.speed.training_step --device cuda --autocast

With `--output`, `results/training_step.json` holds the numbers and `report/training_step.png` shows
them; a second run into the same directory replaces both.

Needs `pip install sae-lens-bipolar[speed]`; without eai-sparsify its rows are left out.

What a step is:
- SAELens and this package: `SAETrainer.step`, whole: forward, firing statistics, backward, gradient
  clipping, Adam, scheduler. The trainer is SAELens's in both; SAEs of this package let its Adam be
  fused (`sae_lens_bipolar.fused_adam`).
- eai-sparsify: the lines of its `Trainer` that run between a language model's activations and the
  next ones, in its plain configuration: unit-norm decoder, forward, firing mask, FVU loss and its
  logged float, backward, projected decoder gradient, schedule-free SignSGD. No auxiliary loss (its
  default), so it does less than the others.

Two contestants alternate, batch by batch, in one process, and each ratio is taken between
neighbours; so whatever else the machine does falls on both. Activations are random, of low rank
plus noise. No latent is dead, so no auxiliary loss is at work in any of them.

Where products of this package run through oneDNN (`sae_lens_bipolar.sparse.products`), the other
contestant is timed a second time with the same products, and both ratios are given.

Memory is the peak of a process with one contestant, less what it held before the step (parameters,
optimizer state, the batch).
"""

import contextlib
import ctypes
import importlib.metadata
import platform
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from recipes.common.arguments import HIDDEN, Parser, command, parse
from recipes.speed.contestants import (
    SHAPES,
    SPARSIFY,
    Options,
    Shape,
    activations,
    batch_size,
    comparisons,
    make_step,
)
from recipes.speed.report import draw, line_of_comparison, lines_of_memory
from sae_lens_bipolar.files.atomic import write_json, write_text
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.runs.step_times import seconds
from sae_lens_bipolar.sparse.measured import device_name
from sae_lens_bipolar.sparse.products import choice, fast_products


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(ours: str, reference: str, shape: Shape, options: Options) -> dict[str, Any]:
    """Step times of two contestants and of the encoder's product, taken in turn."""
    batches = [activations(shape, options, seed) for seed in range(2)]
    steps = {name: make_step(name, shape, options) for name in (ours, reference)}
    W_enc = torch.randn(shape.d_in, shape.d_sae).to(options.device)
    times: dict[str, list[float]] = {"encoder": [], ours: [], reference: []}
    here = torch.device(options.device)
    again = f"{reference}, same products"
    if here.type == "cpu" and choice().used:
        times[again] = []
    l0 = 0.0
    for i in range(
        options.steps + 2
    ):  # two to warm up: the first sets up optimizers and thresholds
        x = batches[i % 2]
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, options.autocast):
            taken = {"encoder": seconds(lambda x=x: x @ W_enc, options.device)}
        for name, step in steps.items():
            last: dict[str, Any] = {}
            taken[name] = seconds(
                lambda step=step, x=x, last=last: last.update(output=step(x)), options.device
            )
            if name == ours:
                l0 = last["output"].feature_acts.bool().float().sum(-1).mean().item()
        if again in times:
            with fast_products(here):
                taken[again] = seconds(lambda x=x: steps[reference](x), options.device)
        for name, value in taken.items():
            times[name].append(value)
    times = {name: values[2:] for name, values in times.items()}
    ratios = {"speedup": reference, "speedup_same_products": again}
    return {
        "ours": ours,
        "reference": reference,
        "seconds": {name: summary(values) for name, values in times.items()},
        **{
            key: summary([b / a for a, b in zip(times[ours], times[name], strict=True)])
            for key, name in ratios.items()
            if name in times
        },
        "over_encoder": summary(
            [a / e for a, e in zip(times[ours], times["encoder"], strict=True)]
        ),
        "l0": l0,
    }


def extra_peak_memory(name: str, shape: Shape, options: Options) -> int:
    """Bytes a step needs beyond what is held before it. In a process that does nothing else."""
    step, x = make_step(name, shape, options), activations(shape, options)
    # The first step makes the optimizer's state, a gated SAE's second compiles its search; small
    # ones leave the peak to the third.
    for _ in range(2):
        step(x[: max(64, len(x) // 16)])
    if torch.device(options.device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(x)
        return torch.cuda.max_memory_allocated() - before
    before = reset_peak()
    step(x)
    return peak() - before


def reset_peak() -> int:
    """Resident bytes now; on Linux the peak starts again from here."""
    import psutil

    with contextlib.suppress(OSError, AttributeError):  # Linux with glibc
        ctypes.CDLL(None).malloc_trim(0)  # what the first step freed counts again when reused
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most bytes this process has had resident. Linux counts a parent's in `ru_maxrss`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_in_new_process(name: str, shape_name: str, options: Options) -> int:
    line = [sys.executable, "-m", "recipes.speed.training_step", "--memory-of", name]
    line += ["--shapes", shape_name, "--device", options.device, "--l0", str(options.l0)]
    line += [] if options.batch is None else ["--batch", str(options.batch)]
    line += ["--autocast"] * options.autocast
    clone = Path(__file__).parents[2]
    done = subprocess.run(line, cwd=clone, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def run(options: Options) -> list[dict[str, Any]]:
    """Every comparison at every shape, one row per shape."""
    chosen = [c for c in comparisons() if not options.only or set(c) <= set(options.only)]
    try:
        importlib.metadata.version("eai-sparsify")
    except importlib.metadata.PackageNotFoundError:
        chosen = [c for c in chosen if SPARSIFY not in c]
    shapes = []
    for shape_name in options.shapes:
        shape = SHAPES[shape_name]
        row: dict[str, Any] = {"name": shape_name, **asdict(shape)}
        row["batch"] = batch_size(shape, options)
        row["comparisons"] = []
        for ours, reference in chosen:
            row["comparisons"].append(compare(ours, reference, shape, options))
            print(line_of_comparison(shape_name, row["comparisons"][-1]), flush=True)
        if options.memory:
            names = dict.fromkeys(name for pair in chosen for name in pair)
            row["extra_peak_bytes"] = {
                name: memory_in_new_process(name, shape_name, options) for name in names
            }
            print(lines_of_memory(shape_name, row["extra_peak_bytes"]), flush=True)
        shapes.append(row)
    return shapes


def caches() -> dict[str, str]:
    """Sizes of the first core's caches, where the system tells them."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (folder / name).read_text().strip() for name in ("level", "type", "size")
        )
        found[f"L{level} {kind}"] = size
    return found


def environment(options: Options, command: str) -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("torch", "sae-lens", "sae-lens-bipolar", "numba", "eai-sparsify")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cuda = torch.device(options.device).type == "cuda"
    return {
        "command": command,
        "versions": versions,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if cuda else device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "caches": caches(),
        "blas": re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show()),
        "products": {**asdict(choice()), "through_onednn": choice().used},
    }


def parser() -> Parser:
    contestants = list(dict.fromkeys(name for pair in comparisons() for name in pair))
    made = command("speed.training_step", __doc__)
    defaults = Options()
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=defaults.shapes)
    made.add_argument("--only", nargs="+", choices=contestants, default=[], metavar="NAME")
    made.add_argument("--steps", type=int, default=defaults.steps)
    made.add_argument("--device", default=defaults.device)
    made.add_argument("--autocast", action="store_true", help="bfloat16 autocast")
    made.add_argument("--batch", type=int, help="samples per step, in place of the shape's own")
    made.add_argument("--l0", type=int, default=defaults.l0, help="of SAEs without a k")
    made.add_argument("--no-memory", dest="memory", action="store_false")
    made.add_argument("--output", type=Path, help="write numbers and figure into this directory")
    made.add_argument("--memory-of", default="", choices=contestants, help=HIDDEN)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(made := parser(), arguments)
    for name in ("steps", "batch"):
        value = getattr(given, name)
        if value is not None and value < 1:
            made.error(f"--{name} is {value}; it must be 1 or more")
    options = Options(**{f.name: getattr(given, f.name) for f in fields(Options)})
    if given.memory_of:
        print(extra_peak_memory(given.memory_of, SHAPES[options.shapes[0]], options))
        return
    if given.output:
        claim_output(given.output)
        write_text(given.output / CONFIG_FILE, yaml.safe_dump(asdict(options), sort_keys=False))
        write_json(given.output / ENVIRONMENT_FILE, environment(options, given.command))
    shapes = run(options)
    if given.output:
        write_json(given.output / "results/training_step.json", shapes)
        draw(shapes, given.output / "report/training_step.png")


if __name__ == "__main__":
    main()
