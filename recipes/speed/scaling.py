"""How a training step and the whole job grow with the number of latents, and with k.

    python -m recipes.speed.scaling --output runs/scaling
    python -m recipes.speed.scaling --d-sae 8192 32768 --k 16 256 --job-d-sae --output runs/scaling

`results/scaling.json` holds the numbers, `report/scaling.csv` the same as a table and
`report/scaling.png` shows them. A second run into the same directory replaces them.

- Step: `SAETrainer.step`, whole, of AbsTopK as this package trains it and as SAELens does, in turn,
  beside the encoder's product; as in `training_step`, which says more.
- Memory: the peak of a process with one contestant, less what it held before the step (parameters,
  optimizer state, the batch).
- Job: tokens per second of a run that trains one AbsTopK SAE on the bundled model, from the first
  activation to the saved SAE, with this package's arithmetic and with SAELens's; and of reading
  activations alone, which no run can be faster than.
"""

import csv
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from recipes.common.arguments import HIDDEN, Parser, command, parse
from recipes.speed import training_step
from recipes.speed.contestants import Options, Shape
from recipes.speed.report import draw_scaling
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig
from sae_lens_bipolar.files.atomic import write_json, write_text
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.inputs.models import DEFAULT_MODEL
from sae_lens_bipolar.runs.assets import Assets, load_assets
from sae_lens_bipolar.runs.runner import RunDirectoryRunner
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE, runner_config
from sae_lens_bipolar.sparse import mode

HOOK = "blocks.12.hook_resid_post"
CONTESTANTS = ("our abstopk", "SAELens abstopk")


@dataclass
class Sizes:
    """What is measured; every field is an option of the command."""

    d_in: int = 768
    d_sae: list[int] = field(default_factory=lambda: [8192, 16384, 32768, 65536, 131072])
    k: list[int] = field(default_factory=lambda: [16, 64, 256])
    k_d_sae: int = 32768  # latents of the SAEs that k is varied in
    d_sae_k: int = 64  # k of the SAEs whose latents are varied
    batch: int = 1024  # samples per step
    steps: int = 3  # timed steps of each contestant
    device: str = "cpu"
    autocast: bool = False  # SAELens's bfloat16 autocast
    memory: bool = True  # measure peak memory, one process per contestant
    job_d_sae: list[int] = field(default_factory=lambda: [2304, 9216, 36864])
    job_tokens: int = 20_480
    job_batch: int = 1024


def shapes(sizes: Sizes) -> list[Shape]:
    """Every size of a step, each once."""
    wide = [Shape(sizes.d_in, d_sae, sizes.d_sae_k, sizes.batch) for d_sae in sizes.d_sae]
    dense = [Shape(sizes.d_in, sizes.k_d_sae, k, sizes.batch) for k in sizes.k]
    return list(dict.fromkeys([*wide, *dense]))


def measure_step(shape: Shape, sizes: Sizes) -> dict[str, Any]:
    """Seconds of a step of each contestant and of the product, and bytes beyond what is held."""
    options = _options(sizes)
    row = {**asdict(shape), **training_step.compare(*CONTESTANTS, shape, options)}
    del row["cpu_batch"]
    if sizes.memory:
        row["extra_peak_bytes"] = {name: _memory(name, shape, sizes) for name in CONTESTANTS}
    return row


def _options(sizes: Sizes) -> Options:
    return Options(steps=sizes.steps, device=sizes.device, autocast=sizes.autocast)


def _memory(name: str, shape: Shape, sizes: Sizes) -> int:
    """In a process that does nothing else."""
    size = [shape.d_in, shape.d_sae, shape.k, shape.batch]
    line = [sys.executable, "-m", "recipes.speed.scaling", "--memory-of", name]
    line += ["--size", *map(str, size), "--device", sizes.device, "--output", "."]
    line += ["--autocast"] * sizes.autocast
    clone = Path(__file__).parents[2]
    done = subprocess.run(line, cwd=clone, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def measure_job(sizes: Sizes) -> list[dict[str, Any]]:
    """Tokens per second of whole runs by width, and of reading activations alone."""
    config = SweepConfig(
        model=DEFAULT_MODEL,
        training_tokens=sizes.job_tokens,
        train_batch_size_tokens=sizes.job_batch,
        device=sizes.device,
        n_checkpoints=0,
        options={"autocast": sizes.autocast},
    )
    make = partial(AbsTopKTrainingSAEConfig, k=min([sizes.d_sae_k, *sizes.job_d_sae]))
    saes = {d: {"abstopk": SweepSAE(HOOK, partial(make, d_sae=d))} for d in sizes.job_d_sae}
    if not saes:
        return []
    assets = load_assets(config, next(iter(saes.values())))
    rows = []
    for d_sae, one in tqdm(saes.items(), desc="whole runs", unit="width"):
        found = {
            name: _tokens_per_second(config, one, assets, arithmetic)
            for name, arithmetic in (("ours", "auto"), ("SAELens's arithmetic", "dense"))
        }
        rows.append({"d_sae": d_sae, "tokens_per_second": found})
    alone = _reading_alone(config, saes[sizes.job_d_sae[0]], assets)
    return [{**row, "reading_alone": alone} for row in rows]


def _tokens_per_second(
    config: SweepConfig, saes: dict[str, SweepSAE], assets: Assets, arithmetic: str
) -> float:
    with tempfile.TemporaryDirectory() as folder, mode(arithmetic):  # type: ignore[arg-type]
        runner = _runner(config, saes, assets, Path(folder) / "run")
        start = time.perf_counter()
        runner.run()
        return config.training_tokens / (time.perf_counter() - start)


def _reading_alone(config: SweepConfig, saes: dict[str, SweepSAE], assets: Assets) -> float:
    with tempfile.TemporaryDirectory() as folder:
        store = _runner(config, saes, assets, Path(folder) / "run").activations_store
    batches, n_tokens = store._iterate_filtered_multi_hook_activations(), 0
    next(batches)
    start = time.perf_counter()
    while n_tokens < config.training_tokens / 2:
        n_tokens += len(next(iter(next(batches).values())))
    return n_tokens / (time.perf_counter() - start)


def _runner(
    config: SweepConfig, saes: dict[str, SweepSAE], assets: Assets, run_dir: Path
) -> RunDirectoryRunner:
    run_dir.mkdir(parents=True)
    cfg = runner_config(config, saes, assets.model)
    return RunDirectoryRunner(cfg, run_dir, assets.model, assets.tokens.train)


def table(steps: Sequence[dict[str, Any]], jobs: Sequence[dict[str, Any]]) -> str:
    """The numbers of the figure as CSV: one line per size, contestant and quantity."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["what", "d_in", "d_sae", "k", "batch", "name", "median", "min", "max"])
    for row in steps:
        size = [row[name] for name in ("d_in", "d_sae", "k", "batch")]
        for name, times in row["seconds"].items():
            writer.writerow(["seconds", *size, name, *(f"{t:.6g}" for t in times.values())])
        for name, held in row.get("extra_peak_bytes", {}).items():
            writer.writerow(["extra_peak_bytes", *size, name, held, held, held])
    for row in jobs:
        speeds = {**row["tokens_per_second"], "reading alone": row["reading_alone"]}
        for name, speed in speeds.items():
            values = [f"{speed:.6g}"] * 3
            writer.writerow(["tokens_per_second", "", row["d_sae"], "", "", name, *values])
    return lines.getvalue()


def parser() -> Parser:
    made = command("speed.scaling", __doc__)
    for one in fields(Sizes):
        default = getattr(Sizes(), one.name)
        name = f"--{one.name.replace('_', '-')}"
        if one.name == "memory":
            made.add_argument("--no-memory", dest="memory", action="store_false")
        elif isinstance(default, bool):
            made.add_argument(name, action="store_true", help="bfloat16 autocast")
        elif isinstance(default, list):
            made.add_argument(name, nargs="*", type=int, default=default)
        else:
            made.add_argument(name, type=type(default), default=default)
    made.add_argument("--output", type=Path, required=True, help="directory of the results")
    made.add_argument("--memory-of", default="", choices=CONTESTANTS, help=HIDDEN)
    made.add_argument("--size", nargs=4, type=int, help=HIDDEN)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(made := parser(), arguments)
    sizes = Sizes(**{f.name: getattr(given, f.name) for f in fields(Sizes)})
    for name, value in asdict(sizes).items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(n, int) and not isinstance(n, bool) and n < 1 for n in numbers):
            made.error(f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
    if given.memory_of:
        shape = Shape(*given.size)
        print(training_step.extra_peak_memory(given.memory_of, shape, _options(sizes)))
        return
    claim_output(given.output)
    write_text(given.output / CONFIG_FILE, yaml.safe_dump(asdict(sizes), sort_keys=False))
    environment = training_step.environment(_options(sizes), given.command)
    write_json(given.output / ENVIRONMENT_FILE, environment)
    jobs = measure_job(sizes)
    todo = tqdm(shapes(sizes), desc="steps", unit="size")
    steps = [measure_step(shape, sizes) for shape in todo]
    write_json(given.output / "results/scaling.json", {"steps": steps, "jobs": jobs})
    write_text(given.output / "report/scaling.csv", table(steps, jobs))
    draw_scaling(steps, jobs, asdict(sizes), given.output / "report/scaling.png")
    print(table(steps, jobs), end="")


if __name__ == "__main__":
    main()
