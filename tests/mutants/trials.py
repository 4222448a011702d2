"""One trial: some tests in a process forked from a warm one, with one module changed."""

import contextlib
import gc
import importlib
import importlib.machinery
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.mutants import selection
from tests.mutants.mutations import MODULE, Mutant, functions_at, mutated

_MEMORY = 16 << 30  # bytes of addresses, so that a wrong size ends in an error
# Without plugins that write or collect garbage, which costs more than most of the tests do.
_WITHOUT = ("cacheprovider", "xdist", "unraisableexception", "threadexception", "faulthandler")
_QUIET = ("-q", "-m", "not slow", *(part for name in _WITHOUT for part in ("-p", f"no:{name}")))
# Processor seconds that one test may take: so many times its own, and at least so many.
_PATIENCE, _LEAST_PATIENCE = 10, 20
_ENOUGH = 60  # seconds of tests that a mutant is tried on
_COMPILED = "_numba.py"  # functions there are entered without Python's knowledge
_LONGEST = 1800  # seconds that any process may take, however busy the machine

_START = subprocess.Popen.__init__.__code__
_OURS = ("sae_lens_bipolar", "tests", "_", "conftest", "test_", "recipes")

Baseline = dict[str, dict[str, Any]]  # test id -> {"seconds", "entered": [module, function]}


def warm_up(modules: Iterable[str]) -> None:
    """Import what the tests import, so that no trial has to; of the package itself nothing."""
    for name in ("sae_lens", "transformer_lens", *modules):
        try:
            importlib.import_module(name)
        except Exception:  # an extra that is not installed, a module that only a plugin may load
            continue
    gc.collect()
    gc.freeze()  # or every collection in a child would copy the pages it shares with this process


def measure(file: str, modules: list[str]) -> tuple[Baseline, list[str]]:
    """How long each test of a file takes, which functions of the modules it enters; its imports.

    Tests that fail, are skipped or start processes are left out: they say nothing of a change.
    """
    watch = _Watch(modules)

    def task() -> tuple[Baseline, list[str]]:
        _run([file], [watch])
        return watch.found(), [name for name in sys.modules if not name.startswith(_OURS)]

    found = _in_child(task)
    if found is None:
        raise RuntimeError(f"{file} did not end")
    return found


def verdict(mutant: Mutant, baseline: Baseline) -> dict[str, Any]:
    """What the tests that enter the mutant's function, quickest first, say to it.

    Returns:
        `outcome` ("killed", "survived", or "timeout", where its process died too), `by` (the test),
        `seconds` and the number of `tests` that were asked.
    """
    everywhere = mutant.function.startswith(MODULE) or mutant.file.endswith(_COMPILED)
    asked: dict[str, float] = {}
    for test, known in sorted(baseline.items(), key=lambda item: item[1]["seconds"]):
        if everywhere or [mutant.file, mutant.function] in known["entered"]:
            asked[test] = known["seconds"]
        if sum(asked.values()) > _ENOUGH:
            break
    if not asked:
        return {"outcome": "survived", "by": "no test enters it", "seconds": 0.0, "tests": 0}
    source = (selection.ROOT / mutant.file).read_text(encoding="utf-8")
    code = compile(mutated(source, mutant), str(selection.ROOT / mutant.file), "exec")
    order = _Order(asked)

    def trial() -> dict[str, Any]:
        _import_as(mutant.file.removesuffix(".py").replace("/", "."), code)
        files = sorted({test.split("::")[0] for test in asked})
        status = _run(files, [order], "-x", compiles_anew="numba" in mutant.file)
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise RuntimeError(f"no tests for {mutant.key}")
        outcome = "survived" if status == pytest.ExitCode.OK else "killed"
        if order.failed and "TimeoutError: processor" in order.failed[1]:
            outcome = "timeout"
        return {"outcome": outcome, "by": order.failed[0] if order.failed else f"{status}"}

    begun = time.monotonic()
    patience = int(60 + 4 * sum(asked.values()))
    found = _in_child(trial, patience) or {"outcome": "timeout", "by": ""}
    return {**found, "seconds": round(time.monotonic() - begun, 1), "tests": len(asked)}


def _run(files: list[str], plugins: list[Any], *options: str, compiles_anew: bool = False) -> int:
    scratch = tempfile.mkdtemp(prefix="mutants-")
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    if compiles_anew and "numba" in sys.modules:  # it caches by file and time
        os.environ["NUMBA_CACHE_DIR"] = scratch
        sys.modules["numba"].config.reload_config()
    try:
        return int(pytest.main([*files, *_QUIET, f"--basetemp={scratch}/t", *options], plugins))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _import_as(name: str, code: CodeType) -> None:
    """From here on, importing the module of this name runs `code`."""
    loader = importlib.machinery.SourceFileLoader
    get_code = loader.get_code

    def changed(self: Any, fullname: str) -> CodeType | None:
        return code if fullname == name else get_code(self, fullname)

    loader.get_code = changed  # type: ignore[method-assign]


def _in_child(task: Callable[[], Any], seconds: int = _LONGEST) -> Any:
    """What `task` returns in a forked process; None where that dies or takes too long.

    Args:
        task: what to do; its result must be JSON.
        seconds: of processor time.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def body() -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        spent = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds))
        silence = os.open(os.environ.get("MUTANTS_LOG", os.devnull), os.O_CREAT | os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            send.send(json.dumps({"result": task()}))
        except Exception as error:  # of this runner; those of tests are pytest's
            send.send(json.dumps({"error": repr(error)}))

    child = context.Process(target=body)
    child.start()
    send.close()
    try:
        found = json.loads(receive.recv()) if receive.poll(_LONGEST) else {"result": None}
    except EOFError:
        found = {"result": None}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
        child.join()
    if "error" in found:
        raise RuntimeError(found["error"])
    return found["result"]


class _Watch:
    """A pytest plugin that notes for each test how long it takes and which functions it enters."""

    def __init__(self, modules: list[str]):
        self.names = {
            str(selection.ROOT / name): (name, functions_at(selection.ROOT / name))
            for name in modules
        }
        self.entered: Mapping[str, set[tuple[str, str]]] = defaultdict(set)
        self.shared: set[tuple[str, str]] = set()  # by fixtures, which may serve several tests
        self.seconds: dict[str, float] = {}
        self.with_children: set[str] = set()  # processes of their own, where nothing is changed

    def _noting(self, test: str, into: set[tuple[str, str]]) -> Iterator[None]:
        def profile(frame: FrameType, event: str, _: Any) -> None:
            code = frame.f_code
            if event != "call":
                return
            if known := self.names.get(code.co_filename):
                name, functions = known
                into.add((name, functions.get(code.co_firstlineno, MODULE)))
            elif code is _START:
                self.with_children.add(test)

        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._noting(item.nodeid, self.shared))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        begun = time.process_time()
        result = yield from self._noting(item.nodeid, self.entered[item.nodeid])  # type: ignore[index]
        self.seconds[item.nodeid] = round(time.process_time() - begun, 3)
        return result

    def found(self) -> Baseline:
        return {
            test: {"seconds": seconds, "entered": sorted(self.entered[test] | self.shared)}
            for test, seconds in self.seconds.items()
            if test not in self.with_children
        }


class _Order:
    """A pytest plugin that runs some tests only, quickest first, and remembers what failed."""

    def __init__(self, asked: dict[str, float]):
        self.asked = asked
        self.failed: tuple[str, str] | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if item.nodeid in self.asked]
        items[:] = sorted(kept, key=lambda item: self.asked[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        def stop(*_: Any) -> None:
            raise TimeoutError("processor time is up")

        signal.signal(signal.SIGPROF, stop)
        patience = max(_LEAST_PATIENCE, _PATIENCE * self.asked[item.nodeid])
        signal.setitimer(signal.ITIMER_PROF, patience)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid, report.longreprtext[-400:]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid, report.longreprtext[-400:]
