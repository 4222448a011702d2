"""Check this package on a GPU and time its training step there, in one go and within minutes.

    make gpu-check
    python -m recipes.speed.gpu_check --output DIR
    python -m recipes.speed.gpu_check --device cpu --shapes tiny --steps 1 --output DIR  # to try it

Needs no network. The parts, each in a process of its own with a time limit of its own:
- the tests marked `gpu`: every kernel against its dense equivalent, on the device;
- a profile of a step by kernel, on Triton kernels and dense;
- per precision (bfloat16 autocast, TF32, float32) and shape: whole steps on kernels and dense,
  SAELens's and eai-sparsify's, in turn, as `recipes.speed.training_step` has them; beside them the
  least that a step does (encoder product, one reading of it, Adam); and peak memory;
- `sae-lens-bipolar tune`: the table that decides which arithmetic this device trains with.

`results/gpu_check.json` says of each part whether it was done, what it took, and, where it failed,
how; what it measured lies beside it in `results`, with a table of the steps, and their figure and
what each part printed in `report`. A part that fails or runs out of time stops no other; the
command then ends with exit code 1.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from recipes.common.arguments import HIDDEN, Parser, command, parse
from recipes.speed.contestants import SHAPES, Options
from recipes.speed.gpu_parts import PRECISIONS, profile, steps
from recipes.speed.gpu_report import write_report
from recipes.speed.training_step import environment
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE
from sae_lens_bipolar.files.outputs import claim_output

CLONE = Path(__file__).parents[2]
DONE, FAILED, LATE, LEFT_OUT = "done", "failed", "out of time", "left out: no time was left"
TESTS = "tests/sparse/triton"


@dataclass(frozen=True)
class Part:
    """One process of the check."""

    name: str
    arguments: tuple[str, ...]  # of this interpreter
    limit: float  # seconds


def parts(given: Any) -> list[Part]:
    """What is run, in this order: what says most comes first."""
    own = ("-m", "recipes.speed.gpu_check", "--output", str(given.output.absolute()))
    own += ("--device", given.device, "--steps", str(given.steps))
    # Without the project's options, which need plugins that a GPU machine may lack.
    tests = ("-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider")
    tests += ("--import-mode=importlib", "-m", "gpu", *given.tests)
    if importlib.util.find_spec("xdist"):  # most of their time goes into compiling kernels
        tests += ("-n", str(min(8, os.cpu_count() or 1)))
    found = [Part("tests", tests, 150)]
    largest = given.shapes[-1]
    found.append(Part(f"profile-{largest}", (*own, "--part", f"profile:{largest}:bfloat16"), 80))
    tune = ["-m", "sae_lens_bipolar.cli", "tune", "--device", given.device]
    tune += ["--steps", str(given.steps), "--shapes"]
    for name in given.shapes:
        shape = SHAPES[name]
        tune.append(f"{shape.d_in}:{shape.d_sae}:{shape.k}:{shape.batch}")
    for i, precision in enumerate(given.precisions):
        for shape in given.shapes:
            name = f"steps-{shape}-{precision}"
            found.append(Part(name, (*own, "--part", f"steps:{shape}:{precision}"), 80))
        if i == 0:  # so that the table is made even where time is short
            found.append(Part("tune", tuple(tune), 120))
    return found


def run_part(part: Part, output: Path, left: float) -> dict[str, Any]:
    """Run one part and say how it ended; what it printed is kept."""
    limit = min(part.limit, left)
    if limit <= 0:
        return {"name": part.name, "ended": LEFT_OUT, "seconds": 0.0, "says": ""}
    start, log = time.monotonic(), output / "report" / f"{part.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "SAE_LENS_BIPOLAR_CACHE": str((output / "cache").absolute())}
    variables["PYTHONPATH"] = os.pathsep.join([str(CLONE), os.environ.get("PYTHONPATH", "")])
    with log.open("w", encoding="utf-8") as stream:
        line = [sys.executable, *part.arguments]
        try:
            ended = subprocess.run(
                line, cwd=CLONE, env=variables, stdout=stream, stderr=subprocess.STDOUT,
                timeout=limit, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            ended = None
    words = DONE if ended == 0 else LATE if ended is None else FAILED
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    taken = round(time.monotonic() - start, 1)
    return {"name": part.name, "ended": words, "seconds": taken, "says": "".join(last)[:500]}


def check(given: Any) -> bool:
    """Run every part; whether all were done."""
    claim_output(given.output)
    settings = {key: value for key, value in vars(given).items() if key not in _NOT_SETTINGS}
    write_text(given.output / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))
    deadline, ended = time.monotonic() + 60 * given.minutes, []
    with contextlib.suppress(Exception):  # a device that cannot even be named fails in its parts
        here = environment(Options(device=given.device), given.command)
        write_json(given.output / ENVIRONMENT_FILE, here)
    for part in parts(given):
        ended.append(run_part(part, given.output, deadline - time.monotonic()))
        write_json(given.output / "results/gpu_check.json", ended)  # whole after every part
        print("{name:32s} {ended}  {seconds} s  {says}".format(**ended[-1]), flush=True)
    for table in (given.output / "cache/arithmetic").glob("*.json"):
        write_json(given.output / "results/tune.json", read_json(table))
    write_report(given.output)
    return all(part["ended"] == DONE for part in ended)


def run_inside(given: Any) -> None:
    """One part, in the process that was started for it."""
    kind, shape, precision = given.part.split(":")
    options = Options(device=given.device, steps=given.steps, autocast=precision == "bfloat16")
    if SHAPES[shape].d_in < 64:
        options.l0 = 16
    work = {"profile": profile, "steps": steps}[kind]
    found = {"shape": shape, **asdict(SHAPES[shape]), "precision": precision}
    found |= work(SHAPES[shape], precision, options)
    write_json(given.output / f"results/{kind}-{shape}-{precision}.json", found)


_NOT_SETTINGS = ("output", "command", "part", "recipe")


def parser() -> Parser:
    made = command("speed.gpu_check", __doc__)
    shapes = ["gpt2", "gemma-2-2b", "qwen3-4b"]
    made.add_argument("--output", type=Path, required=True, help="run directory")
    made.add_argument("--device", default="cuda")
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=shapes)
    made.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    made.add_argument("--steps", type=int, default=5, help="timed steps of each contestant")
    made.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    made.add_argument("--tests", nargs="+", default=[TESTS], help="files or folders of tests")
    made.add_argument("--part", default="", help=HIDDEN)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(made := parser(), arguments)
    if given.steps < 1 or given.minutes <= 0:
        made.error("--steps must be 1 or more, and --minutes above 0")
    if given.part:
        run_inside(given)
    elif not check(given):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
