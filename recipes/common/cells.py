"""Independent cells of a recipe, in sequence in this process or spread over a Ray cluster.

A cell is a function of JSON-able parameters that writes files into a directory of its own; it is
done when its result file is there. Nothing else is shared, so the same cells give the same files
wherever they run. On a cluster of several machines all of them must see the output directory.
`--cluster auto` takes the running Ray cluster if there is one, and otherwise starts Ray on this
machine; it needs `pip install "sae-lens-bipolar[cluster]"`, on every machine.
"""

import json
import random
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

import recipes
from recipes.common.arguments import Options
from recipes.common.scales import Resources
from sae_lens_bipolar.errors import BipolarError, ConfigError
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.runs.directory import require_same_run, start_run

PARAMS_FILE = "cell.json"
ERROR_FILE = "error.txt"
SECONDS_FILE = "seconds.json"  # of all attempts at the cell
ONE_CORE = Resources()
_SHOWN = 10  # cells named where many are still to run


class CellError(BipolarError):
    """Some cells failed; the message names them, and the others are done."""


class Cell(NamedTuple):
    """One independent piece of work."""

    name: str  # its directory is `output/cells/NAME`
    params: Mapping[str, Any]  # JSON-able


Run = Callable[[Mapping[str, Any], Path], None]  # (params, directory of the cell)


class _Job(NamedTuple):
    """What all cells of a call share; see `run_cells`."""

    run: Run
    root: Path
    result: str
    resources: Resources


def run_cells(
    cells: Sequence[Cell],
    run: Run,
    output: Path,
    cluster: str | None = None,
    *,
    result: str = "result.json",
    resources: Resources = ONE_CORE,
    only: str = "*",
) -> bool:
    """Run every cell whose result file is missing; a failed one does not stop the others.

    Args:
        cells: names must differ.
        run: called as `run(params, directory)`; must write `directory / result`. On a cluster it
            is pickled: a function of a module below `recipes`.
        output: cells live in `output/cells/NAME`, an `error.txt` in those that failed.
        cluster: None to run in sequence in this process, "auto", or the address of a Ray cluster.
        result: the file, relative to the cell's directory, that says a cell is done.
        resources: what a cell takes, and how often one that failed or died is started again.
        only: shell pattern of the names to run now, to run a recipe in parts.

    Returns:
        Whether all cells are done, also those that `only` left out.

    Raises:
        ConfigError: if two cells share a name, a finished or started cell has other parameters, or
            `cluster` is given without Ray installed; before anything runs.
        CellError: after everything else is done, naming the cells that failed.
    """
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise ConfigError(f"cells must have different names, got {sorted(names)}")
    root = output / "cells"
    for cell in cells:
        _require_same_params(cell, root / cell.name)
    chosen = [cell for cell in cells if fnmatch(cell.name, only)]
    waiting = [cell for cell in chosen if not (root / cell.name / result).exists()]
    job = _Job(run, root, result, resources)
    outcomes = _in_sequence(waiting, job) if cluster is None else _on_ray(waiting, job, cluster)
    failed: dict[str, str] = {}
    with tqdm(total=len(chosen), initial=len(chosen) - len(waiting), desc="cells") as progress:
        for cell, error in outcomes:
            progress.update(error is None)
            if error is not None:
                failed[cell.name] = error
                tqdm.write(f"cell {cell.name} failed: {_last_line(error)}")
                write_text(root / cell.name / ERROR_FILE, error)
    if failed:
        described = "; ".join(f"{name} ({_last_line(error)})" for name, error in failed.items())
        raise CellError(
            f"{len(failed)} of {len(chosen)} cells failed: {described}. The others are done; see "
            f"{root}/NAME/{ERROR_FILE}, and give the same command again to run these only"
        )
    missing = [cell.name for cell in cells if not (root / cell.name / result).exists()]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        tqdm.write(f"{len(missing)} of {len(cells)} cells are still to run: {shown}")
    return not missing


def run_recipe(
    options: Options,
    settings: Mapping[str, Any],
    cells: Sequence[Cell],
    run: Run,
    resources: Resources,
    result: str = "result.json",
) -> bool:
    """Start the run in `options.output`, or take it up, and run the cells that `options` choose.

    Args:
        options: of `arguments.parse`.
        settings: what the run depends on, resolved; written to its `config.yaml`.
        cells: all of them.
        run: see `run_cells`.
        resources: what a cell takes.
        result: see `run_cells`.

    Returns:
        Whether all cells are done.

    Raises:
        ConfigError: if the directory holds a run with other settings; and as `run_cells`.
    """
    config = run_config(options, settings)
    require_same_run(options.output, config)
    start_run(options.output, config, options.command)
    return run_cells(
        cells,
        run,
        options.output,
        options.cluster,
        result=result,
        resources=resources,
        only=options.cells,
    )


def run_config(options: Options, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.yaml` of a recipe's run holds."""
    return {"recipe": options.recipe, "scale": options.scale, **settings}


def run_one(cell: Cell, run: Run, directory: Path, result: str, threads: int) -> None:
    """Run one cell here with its own seeds and threads, whatever the order or the process."""
    claim_output(directory)
    write_json(directory / PARAMS_FILE, cell.params)
    with _timed(directory), _threads_and_seeds(threads, seed=zlib.crc32(cell.name.encode())):
        run(cell.params, directory)
    if not (directory / result).exists():
        raise CellError(f"cell {cell.name} ended without writing {directory / result}")
    (directory / ERROR_FILE).unlink(missing_ok=True)


def _in_sequence(cells: Sequence[Cell], job: _Job) -> Iterator[tuple[Cell, str | None]]:
    """Yield each cell and its error's traceback, or None if it is done."""
    for cell in cells:
        error = None
        for _ in range(1 + job.resources.retries):
            try:
                run_one(cell, job.run, job.root / cell.name, job.result, job.resources.num_cpus)
                error = None
                break
            except Exception:  # whatever it is, the other cells go on
                error = traceback.format_exc()
        yield cell, error


def _on_ray(cells: Sequence[Cell], job: _Job, cluster: str) -> Iterator[tuple[Cell, str | None]]:
    """As `_in_sequence`, in the order the cells end; each in a worker process of Ray."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"cluster={cluster!r} needs Ray: pip install 'sae-lens-bipolar[cluster]', or leave "
            "--cluster out to run the cells in sequence"
        ) from error
    if not cells:
        return
    ray.init(
        address=None if cluster == "auto" else cluster,
        # Ray copies the recipes to every worker, which need not have the clone.
        runtime_env={"py_modules": [recipes], "excludes": ["results"]},
        log_to_driver=False,  # the progress bars of many cells at once are no help
    )
    try:
        task = ray.remote(run_one).options(
            num_cpus=job.resources.num_cpus,
            num_gpus=job.resources.num_gpus,
            max_retries=job.resources.retries,
            retry_exceptions=True,
        )
        root = job.root.resolve()  # workers have another working directory
        running = {
            task.remote(cell, job.run, root / cell.name, job.result, job.resources.num_cpus): cell
            for cell in cells
        }
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            error = None
            try:
                ray.get(ended)
            except Exception as failure:  # of the cell, or the death of its worker
                error = "".join(traceback.format_exception(failure))
            yield running.pop(ended), error
    finally:
        ray.shutdown()


def _require_same_params(cell: Cell, directory: Path) -> None:
    file = directory / PARAMS_FILE
    if not file.exists():
        return
    before, now = read_json(file), json.loads(json.dumps(cell.params))
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{directory} holds a cell with other parameters ({'; '.join(changed)}); give another "
            "--output, or remove the directory"
        )


def seconds_of(output: Path, cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds that each cell of a run has taken, its attempts that were stopped included."""
    files = {cell.name: output / "cells" / cell.name / SECONDS_FILE for cell in cells}
    return {name: read_json(file) for name, file in files.items() if file.exists()}


@contextmanager
def _timed(directory: Path) -> Iterator[None]:
    file = directory / SECONDS_FILE
    before = read_json(file) if file.exists() else 0.0
    start = time.monotonic()
    try:
        yield
    finally:
        write_json(file, round(before + time.monotonic() - start, 1))


@contextmanager
def _threads_and_seeds(threads: int, seed: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _last_line(error: str) -> str:
    return error.strip().splitlines()[-1][:300]
