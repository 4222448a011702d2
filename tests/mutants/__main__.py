"""Run mutants of the arithmetic against the tests that answer for it: `make mutants`.

    python -m tests.mutants [--size 360] [--seed 0] [--minutes M] [--only TEXT] [--list]

Each mutant is one small change of one module. It is run in a process forked from one that has
imported the hosts, against the tests that enter its function, quickest first, until one fails.
Results go to a file of JSON lines outside the tree and are kept: a second call goes on where the
first stopped, and tries survivors again once a test file of theirs has changed.

Ends with 0 where at least 95% are killed and every survivor is in `equivalent.yaml`, with a reason.
"""

import argparse
import ast
import hashlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from tests.mutants import selection, trials
from tests.mutants.mutations import Mutant

EQUIVALENT = Path(__file__).parent / "equivalent.yaml"
ENOUGH = 0.95
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


def main() -> int:
    """Run what is asked for on the command line; the exit status."""
    parser = argparse.ArgumentParser(description="Mutate the arithmetic and see who notices.")
    parser.add_argument("--size", type=int, default=360, help="mutants, evenly over the modules")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another sample")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--only", default="", help="mutants whose key holds this text")
    parser.add_argument("--list", action="store_true", help="say what is known, and run nothing")
    parser.add_argument("--results", type=Path, default=_CACHE / "sae-lens-bipolar" / "mutants")
    options = parser.parse_args()
    os.chdir(selection.ROOT)
    every = selection.all_mutants()
    chosen = selection.sample(every, options.size, options.seed)
    chosen = [mutant for mutant in chosen if options.only in mutant.key]
    results = _Results(options.results)
    done = True
    if not options.list:
        done = _run(chosen, results, time.monotonic() + 60 * options.minutes)
    return _report(every, chosen, results) if done else 3


def _run(chosen: list[Mutant], results: "_Results", until: float) -> bool:
    """Run what has no result yet, module by module; whether all have one now."""
    todo = [mutant for mutant in chosen if results.of(mutant) is None]
    known: dict[str, trials.Baseline] = {}
    for mutant in tqdm(sorted(todo, key=lambda mutant: mutant.file), unit="mutant"):
        files = selection.tests_for(mutant.file)
        for file in files:
            if time.monotonic() > until:
                return False
            if file not in known:
                known[file] = _baseline(file, results.folder)
        baseline = {test: entry for file in files for test, entry in known[file].items()}
        results.add(mutant, trials.verdict(mutant, baseline))
    return True


def _baseline(file: str, folder: Path) -> trials.Baseline:
    """What a test file does without a change, measured anew where the file has changed."""
    path = folder / "baseline" / f"{file.replace('/', '.')}.json"
    state = selection.digest([file])
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("state") != state:
        trials.warm_up(())
        tests, modules = trials.measure(file, selection.modules())
        kept = {"state": state, "tests": tests, "modules": modules}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept))
    trials.warm_up(sorted(kept["modules"]))
    return kept["tests"]


class _Results:
    """The results so far, as JSON lines; one is valid while module and tests are as they were."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "results.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}
        self.states: dict[str, tuple[str, str]] = {}

    def _state(self, mutant: Mutant) -> tuple[str, str]:
        """A hash of the module's code, comments aside, and one of its tests."""
        if mutant.file not in self.states:
            code = ast.unparse(ast.parse((selection.ROOT / mutant.file).read_text("utf-8")))
            tests = selection.digest(selection.tests_for(mutant.file))
            self.states[mutant.file] = hashlib.sha256(code.encode()).hexdigest()[:16], tests
        return self.states[mutant.file]

    def of(self, mutant: Mutant) -> dict[str, Any] | None:
        """The result of a mutant, if it is still valid: more tests kill no fewer."""
        row, (code, tests) = self.rows.get(mutant.key), self._state(mutant)
        if row is None or row["code"] != code:
            return None
        return row if row["outcome"] != "survived" or row["tests_state"] == tests else None

    def add(self, mutant: Mutant, verdict: dict[str, Any]) -> None:
        code, tests = self._state(mutant)
        row = {"key": mutant.key, **verdict, "code": code, "tests_state": tests}
        self.rows[mutant.key] = row
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _report(every: list[Mutant], chosen: list[Mutant], results: _Results) -> int:
    """Print the summary; the exit status."""
    accepted: dict[str, str] = yaml.safe_load(EQUIVALENT.read_text("utf-8")) or {}
    rows = {mutant.key: (mutant, results.of(mutant)) for mutant in chosen}
    counts = Counter(row["outcome"] for _, row in rows.values() if row)
    killed, ran = counts["killed"] + counts["timeout"], sum(counts.values())
    survivors = [m for m, row in rows.values() if row and row["outcome"] == "survived"]
    unexplained = [mutant for mutant in survivors if mutant.key not in accepted]
    for title, mutants in (
        ("equivalent", [mutant for mutant in survivors if mutant.key in accepted]),
        ("SURVIVED", unexplained),
    ):
        for mutant in mutants:
            print(f"{title}: line {mutant.line} of {mutant.key}")
            if mutant.key in accepted:
                print(f"    {accepted[mutant.key]}")
    for key in sorted(set(accepted) - {mutant.key for mutant in every}):
        print(f"no longer there, take it out of {EQUIVALENT.name}: {key}")
    share = killed / ran if ran else 0.0
    print(
        f"{len(every)} mutants in {len({m.file for m in every})} modules, {len(rows)} chosen, "
        f"{ran} run: {killed} killed ({share:.1%}), {counts['timeout']} of them by a time limit; "
        f"{len(survivors)} survived, {len(survivors) - len(unexplained)} of them equivalent"
    )
    return int(ran < len(rows) or share < ENOUGH or bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
