"""The test suite under the oldest and the newest hosts: `make test-matrix`.

    python tests/matrix/run_matrix.py [--workers N] [ROW ...]   # default: every row, in order
    python tests/matrix/run_matrix.py --table                   # only print what results.json holds

A row is a requirements file beside this one. It gets an environment of its own under .matrix/, made
with the Python that runs this, in which the tests that are not slow are run. What was installed and
what came of it goes to results.json; docs/compatibility.md shows it. Stops at the first row that
fails. torch is the one of constraints.txt in every row: others would bring gigabytes of CUDA.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".matrix"
RESULTS = HERE / "results.json"
ROWS = {"oldest": "oldest", "newest": "newest", "saebench": "newest, with SAEBench"}
PACKAGES = (
    *("sae-lens", "transformer-lens", "transformers", "numpy", "torch", "sae-bench"),
    *("datasets", "huggingface-hub", "pandas", "tokenizers"),
)
_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def install(row: str) -> Path:
    """The row's Python; its environment is made anew if a file that describes it has changed."""
    environment = ENVIRONMENTS / row
    python, stamp = environment / "bin" / "python", environment / ".installed"
    inputs = [HERE / f"{row}.txt", HERE / "tools.txt"]
    inputs += [ROOT / "constraints.txt", ROOT / "pyproject.toml"]
    if stamp.exists() and stamp.stat().st_mtime > max(file.stat().st_mtime for file in inputs):
        return python
    print(f"== {row}: installing into {environment}", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-r", str(inputs[0])], cwd=ROOT, check=True)
    # sae-bench declares torchvision and never imports it; see constraints.txt.
    subprocess.run([*pip, "uninstall", "--yes", "torchvision"], cwd=ROOT, check=True)
    stamp.touch()
    return python


def run(row: str, workers: int) -> dict[str, Any]:
    """Run the row's tests; what was installed, how many tests came out how, and when."""
    python = install(row)
    asked = [str(python), "-c", _VERSIONS, *PACKAGES]
    versions = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    report = ENVIRONMENTS / f"{row}.xml"
    report.unlink(missing_ok=True)
    print(f"== {row}: testing", flush=True)
    command = [str(python), "-m", "pytest", "-m", "not slow", "-q", "-p", "no:cacheprovider"]
    command += ["-n", str(workers if workers > 1 else 0), f"--junitxml={report}"]
    # What holds the documentation to these results reads the last ones.
    command += [f"--ignore={HERE / 'test_matrix.py'}"]
    started = datetime.now(timezone.utc)
    code = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": str(ENVIRONMENTS / row)},
    ).returncode
    if not report.exists():
        sys.exit(f"{row}: pytest ended with {code} and wrote no report")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite")).attrib
    failed = int(suite["failures"]) + int(suite["errors"])
    skipped = int(suite["skipped"])
    return {
        "versions": versions,
        "passed": int(suite["tests"]) - failed - skipped,
        "failed": failed if code == 0 else max(failed, 1),  # as when collection ends early
        "skipped": skipped,
        "date": started.date().isoformat(),
        "minutes": round((datetime.now(timezone.utc) - started).total_seconds() / 60, 1),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown: a column a row of the matrix, a line a package."""
    rows = [row for row in ROWS if row in results]
    lines = [["", *(ROWS[row] for row in rows)], ["---"] * (len(rows) + 1)]
    for name in ("python", *PACKAGES):
        versions = (results[row]["versions"].get(name) for row in rows)
        lines.append(["Python" if name == "python" else name, *(v or "none" for v in versions)])
    for outcome in ("passed", "failed", "skipped"):
        lines.append([f"tests {outcome}", *(str(results[row][outcome]) for row in rows)])
    lines.append(["date", *(results[row]["date"] for row in rows)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="The test suite under several hosts.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--workers", type=int, default=1, help="processes that run tests")
    parser.add_argument("--table", action="store_true", help="only print the results")
    options = parser.parse_args()
    if unknown := sorted({*options.rows} - {*ROWS}):
        parser.error(f"{', '.join(unknown)}: not a row; there are {', '.join(ROWS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = False
    for row in () if options.table else options.rows or ROWS:
        results[row] = run(row, options.workers)
        scratch = RESULTS.with_suffix(".tmp")
        scratch.write_text(
            json.dumps({row: results[row] for row in ROWS if row in results}, indent=2) + "\n"
        )
        scratch.replace(RESULTS)
        if failed := results[row]["failed"] > 0:
            break
    print(table(results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
