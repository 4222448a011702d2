"""The output directory: finished runs, complete caches, and what a killed process left.

saebench/SUITE/PROTOCOL/NAME/   SAEBench's own JSON, and run.json: what was run, and its numbers
cache/SUITE-KEY/                activations and probes shared by runs; see `caches`
logs/SUITE-PROTOCOL-NAME.log    what the suite printed, and the traceback if it failed
results/                        saebench.csv, saebench.md, not_run.json
.sae-lens-bipolar-scratch/      the run in progress; removed by the next command
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import BenchError, ConfigError
from sae_lens_bipolar.files.atomic import atomic_path, read_json, remove_scratch, write_json
from sae_lens_bipolar.files.names import RESULTS
from sae_lens_bipolar.files.paths import remove
from sae_lens_bipolar.saebench.options import PROTOCOLS
from sae_lens_bipolar.saebench.results import metrics_of
from sae_lens_bipolar.saebench.suites.registry import SUITES

RUNS, LOGS, RECORD = "saebench", "logs", "run.json"
SCRATCH = ".sae-lens-bipolar-scratch"  # a name that nobody else uses


def clean(output: Path) -> None:
    """Remove what a killed process left; the caller holds the lock of `output`, which is ours."""
    remove(output, SCRATCH)
    for folder in (RUNS, RESULTS):
        remove_scratch(output / folder)


def new_scratch(output: Path) -> Path:
    """An empty folder for one run."""
    remove(output, SCRATCH)
    folder = output / SCRATCH
    folder.mkdir(parents=True)
    return folder


def run_path(output: Path, suite: str, protocol: str, name: str) -> Path:
    """Where a finished run lies."""
    return output / RUNS / suite / protocol / name


def log_path(output: Path, suite: str, protocol: str, name: str) -> Path:
    """Where a run's log lies."""
    return output / LOGS / f"{suite}-{protocol}-{name}.log"


def is_finished(output: Path, suite: str, protocol: str, name: str, identity: Any) -> bool:
    """Whether that run is finished.

    Raises:
        ConfigError: if it is, but of another SAE, model or configuration.
    """
    file = run_path(output, suite, protocol, name) / RECORD
    if not file.is_file():
        return False
    before, now = read_json(file)["identity"], json.loads(json.dumps(identity, default=str))
    if before != now:
        differ = [key for key in now if before.get(key) != now[key]]
        raise ConfigError(
            f"{file.parent} holds a result of another {' and '.join(differ)} under the name "
            f"{name!r}; give another --output, or remove that folder"
        )
    return True


def finish(
    output: Path, suite: str, protocol: str, name: str, found: Path, record: dict[str, Any]
) -> None:
    """Keep SAEBench's JSON (in folder `found`) and its numbers, in one rename.

    Raises:
        BenchError: if there is no JSON, or it lacks the suite's main number (NaN counts as absent).
    """
    files = sorted(found.rglob("*_eval_results.json"))
    if len(files) != 1:
        raise BenchError(f"{suite} wrote {len(files)} result files, expected one")
    metrics = metrics_of(suite, files[0])
    main = SUITES[suite].headline
    named = [metric for metric, *_ in metrics]
    if not metrics or (main.budget is None and main.metric not in named):
        raise BenchError(f"{suite} gave no {main.metric}: it is NaN or absent in its result")
    with atomic_path(run_path(output, suite, protocol, name)) as folder:
        folder.mkdir()
        shutil.copyfile(files[0], folder / files[0].name)
        write_json(folder / RECORD, {**record, "metrics": metrics})


def rows_of(output: Path) -> list[dict[str, Any]]:
    """The rows of every finished run, ordered by SAE, suite and protocol."""
    rows = []
    for file in sorted((output / RUNS).glob(f"*/*/*/{RECORD}")):
        record = read_json(file)
        for protocol in record["protocols"]:
            for metric, budget, value in record["metrics"]:
                shared = {key: record[key] for key in ("sae", "architecture", "model", "hook")}
                rows.append(
                    {
                        **shared,
                        "suite": record["suite"],
                        "protocol": protocol,
                        "metric": metric,
                        "budget": budget,
                        "value": value,
                        "seed": record["seed"],
                    }
                )

    def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["sae"], [*SUITES].index(row["suite"]), PROTOCOLS.index(row["protocol"])

    return sorted(rows, key=order)
