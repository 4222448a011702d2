"""A name that a host loses costs the architectures that need it, and nothing else.

Every name that the package takes from a host is removed in turn, in a forked process that holds the
hosts already: the package is imported there as if that host had never had the name.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sae_lens_bipolar
from sae_lens_bipolar.architectures.registry import _RECORDS
from tests.test_layout import MODULES, ROOT, graph

HOSTS = ("sae_lens", "transformer_lens", "transformers", "sae_bench")


def host_names(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file takes from a host when it is imported."""
    top = ast.parse(file.read_text(encoding="utf-8"))
    for node in top.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in HOSTS:
            yield from ((str(node.module), alias.name) for alias in node.names)
    modules = {  # `from sae_lens.saes import abstopk_sae`, and then `abstopk_sae.X`
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in top.body
        if isinstance(node, ast.ImportFrom) and node.module == "sae_lens.saes"
        for alias in node.names
    }
    for node in ast.walk(top):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id in modules:
            yield modules[node.value.id], node.attr


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TAKEN = {module_of(file): set(host_names(file)) for file in MODULES}
ARROWS = graph()


def reach(start: str) -> set[str]:
    """A module of the package and all that it imports."""
    seen, pending = {start}, [start]
    while pending:
        new = ARROWS[pending.pop()] - seen
        seen |= new
        pending += new
    return seen


# Architecture -> the modules that its file brings.
BROUGHT = {
    name: reach(f"sae_lens_bipolar.architectures.{place.partition('.')[0]}")
    for name, place in _RECORDS.items()
}
ALL = set[tuple[str, str]]().union(*TAKEN.values())
_LOADED = set[str]().union(reach("sae_lens_bipolar.architectures.registry"), *BROUGHT.values())
AT_IMPORT = set[tuple[str, str]]().union(*(TAKEN[module] for module in _LOADED))
NAMES = {"at import": sorted(AT_IMPORT), "later": sorted(ALL - AT_IMPORT)}


def without(module: str, name: str) -> None:
    """Let imports from a host's module find everything but one name."""
    real = sys.modules[module]

    class Without(ModuleType):
        def __getattr__(self, asked: str) -> object:
            if asked == name:
                raise AttributeError(f"module {module!r} has no attribute {name!r}")
            return getattr(real, asked)

    sys.modules[module] = proxy = Without(module)
    parent, _, leaf = module.rpartition(".")
    if parent:  # `from sae_lens.saes import abstopk_sae` asks the parent
        setattr(sys.modules[parent], leaf, proxy)
    if f"{module}.{name}" in sys.modules:  # a module of its own
        sys.modules[f"{module}.{name}"] = None  # type: ignore[assignment]


def found_without(module: str, name: str) -> dict:
    """In a fresh process: what becomes of the package, as JSON can hold it."""
    without(module, name)
    import sae_lens_bipolar as package
    from sae_lens_bipolar.architectures import registry
    from sae_lens_bipolar.errors import HostError

    refused = {}
    for architecture in _RECORDS:
        try:
            registry.find(architecture)
        except HostError as error:
            refused[architecture] = str(error)
    for public in package.__all__:
        try:
            getattr(package, public)
        except HostError as error:
            refused[public] = str(error)
    return {"loaded": sorted(package.ARCHITECTURES), "refused": refused}


def answer_all(when: str) -> None:
    """Fork a child for every name; print what it found, or its traceback."""
    import importlib
    import traceback

    for module, _ in NAMES[when]:
        try:
            importlib.import_module(module)
        except ImportError:  # SAEBench is an extra
            continue
    for known in [key for key in sys.modules if key.split(".")[0] == "sae_lens_bipolar"]:
        del sys.modules[known]  # as this module brought it
    for module, name in NAMES[when]:
        if module not in sys.modules:
            continue
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                found: dict = found_without(module, name)
            except BaseException:
                found = {"traceback": traceback.format_exc()}
            print(json.dumps([module, name, found]), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


@pytest.fixture(scope="module", params=["at import", pytest.param("later", marks=pytest.mark.slow)])
def answers(request: pytest.FixtureRequest) -> dict[tuple[str, str], dict]:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from tests.architectures.test_host_names import answer_all\n"
        f"answer_all({request.param!r})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) > 15
    return {(module, name): found for module, name, found in lines}


def needing(module: str, name: str) -> set[str]:
    """Architectures whose file, or a file it imports, takes the name."""
    users = {user for user, taken in TAKEN.items() if (module, name) in taken}
    # A host module that is gone takes its names with it.
    users |= {u for u, taken in TAKEN.items() if any(m == f"{module}.{name}" for m, _ in taken)}
    return {architecture for architecture, brought in BROUGHT.items() if brought & users}


def test_one_lost_name_costs_what_needs_it_and_is_named(
    answers: dict[tuple[str, str], dict],
) -> None:
    broken = {name: found["traceback"] for name, found in answers.items() if "traceback" in found}
    assert not broken, "\n".join(f"{name}: {text[-600:]}" for name, text in broken.items())
    wrong = []
    for (module, name), found in answers.items():
        expected = needing(module, name)
        refused = {one for one in found["refused"] if one in _RECORDS}
        if refused != expected or set(_RECORDS) - set(found["loaded"]) != expected:
            wrong.append(f"without {module}.{name}: {sorted(refused)}, not {sorted(expected)}")
        for asked, said in found["refused"].items():
            if not (name in said and "sae-lens" in said and "it works with" in said):
                wrong.append(f"without {module}.{name}: {asked}: {said}")
    assert not wrong, "\n".join(wrong)


def test_names_that_one_architecture_alone_needs_are_among_them() -> None:
    assert sum(len(needing(*name)) == 1 for name in AT_IMPORT) >= 4
    assert all(needing(*name) == set() for name in ALL - AT_IMPORT)
    assert ("sae_lens.saes.sae", "SAE") in AT_IMPORT


def test_what_is_loaded_late_is_what_type_checkers_see() -> None:
    """The table of public names and the imports for type checkers are the same."""
    tree = ast.parse(Path(str(sae_lens_bipolar.__file__)).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: str(node.module).removeprefix("sae_lens_bipolar.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == sae_lens_bipolar._HOMES
    assert {*typed} < {*sae_lens_bipolar.__all__} <= {*dir(sae_lens_bipolar)}
    for name in sae_lens_bipolar.__all__:
        assert getattr(sae_lens_bipolar, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'measur'"):
        _ = sae_lens_bipolar.measur
