"""The house: which folder may import which, what stands at the root, where parsers live."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sae_lens_bipolar"
# From the ground up; a folder imports from its own floor and from those below it.
FLOORS = (
    ("errors",),
    ("sparse", "files"),
    ("architectures", "inputs", "reports"),
    ("polarity",),
    ("evaluation",),
    ("steering", "runs"),
    ("saebench",),
    ("hub", "explorer"),
    ("cli",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that may import less than their floor allows.
ONLY = {
    "sparse": {"sparse", "files", "errors"},  # files: what was measured on a device
    "files": {"files", "errors"},
    "architectures": {"architectures", "sparse", "errors"},
    "reports": {"reports", "files", "errors"},
}
IMPORTED_HOSTS = {"sae_bench": "saebench"}  # only below that folder
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.py") if "results" not in path.parts)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def place(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def room_of(module: str) -> str | None:
    """The folder, or `errors`, that a dotted module of the package lies in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "sae_lens_bipolar" and len(parts) > 1 else None


def test_the_root_holds_thirteen_folders_at_most_and_nothing_else() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    folders = entries - {"__init__.py", "__main__.py", "errors.py", "py.typed"}
    assert folders <= set(FLOOR) - {"errors"}
    assert len(folders) <= 13


def test_no_folder_is_deeper_than_two_levels() -> None:
    files = (path for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts)
    deepest = max(files, key=lambda path: len(path.parts))
    assert len(deepest.relative_to(PACKAGE).parts) <= 3, deepest


def test_no_module_is_longer_than_300_lines() -> None:
    long = {
        file.relative_to(ROOT).as_posix(): n
        for file in [*MODULES, *RECIPES]
        if (n := len(file.read_text(encoding="utf-8").splitlines())) > 300
    }
    long.pop("sae_lens_bipolar/cli/train.py", None)  # being shortened
    assert not long


def test_no_import_goes_up() -> None:
    wrong = []
    for file in MODULES:
        here = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if here in ("__init__", "__main__"):
            continue
        for line, module in imports(file):
            room = room_of(module)
            if room not in FLOOR:  # a host, or a name of the package itself
                continue
            if FLOOR[room] > FLOOR[here] or room not in ONLY.get(here, set(FLOOR)):
                wrong.append(f"{place(file, line)}: {here} imports {module}")
    assert not wrong, "\n".join(wrong)


def graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports when it is imported."""
    names = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in MODULES
    }
    found: dict[str, set[str]] = {}
    for file in MODULES:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        top = ast.parse(file.read_text(encoding="utf-8"))
        lazy = {
            id(node)
            for function in ast.walk(top)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        targets = set()
        for node in ast.walk(top):
            if id(node) in lazy:
                continue
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= (inside & names) or {node.module or ""}
        found[name] = (targets & names) - {name}
    return found


def test_no_circle() -> None:
    arrows = graph()
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for target in arrows[name]:
            visit(target, (*trail, name))
        done.add(name)

    for name in arrows:
        visit(name, ())


def test_no_room_knows_another_in_both_directions() -> None:
    """Two folders of one floor may know each other one way only."""
    pairs: dict[tuple[str, str], str] = {}
    for file in MODULES:
        here = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for line, module in imports(file):
            room = room_of(module)
            if here in FLOOR and room in FLOOR and room != here:
                pairs.setdefault((here, room), place(file, line))
    both = [(pairs[a, b], pairs[b, a]) for a, b in pairs if a < b and (b, a) in pairs]
    assert not both, both


def test_parsers_live_in_the_command_line_and_the_recipes() -> None:
    wrong = [
        place(file, line)
        for file in MODULES
        for line, module in imports(file)
        if module == "argparse" and file.relative_to(PACKAGE).parts[0] != "cli"
    ]
    assert not wrong, wrong


def test_a_host_is_imported_in_its_own_folder_alone() -> None:
    wrong = [
        f"{place(file, line)}: {module}"
        for file in MODULES
        for line, module in imports(file)
        if (home := IMPORTED_HOSTS.get(module.split(".")[0]))
        and file.relative_to(PACKAGE).parts[0] != home
    ]
    assert not wrong, wrong


def test_the_package_never_imports_recipes_or_tests() -> None:
    wrong = [
        f"{place(file, line)}: {module}"
        for file in MODULES
        for line, module in imports(file)
        if module.split(".")[0] in ("recipes", "tests")
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_recipe_imports_its_own_paper_and_what_is_common(file: Path) -> None:
    paper = file.relative_to(ROOT / "recipes").parts[0]
    wrong = [
        f"{place(file, line)}: {module}"
        for line, module in imports(file)
        if module.startswith("recipes.") and module.split(".")[1] not in (paper, "common")
    ]
    assert not wrong, wrong


def test_no_two_modules_of_a_folder_differ_by_an_underscore_alone() -> None:
    seen: dict[tuple[Path, str], Path] = {}
    for file in [*MODULES, *RECIPES]:
        if file.name.startswith("__"):
            continue
        key = (file.parent, file.stem.replace("_", ""))
        assert key not in seen, f"{seen[key]} and {file}"
        seen[key] = file


def test_run_files_are_spelt_once() -> None:
    """`files/names.py` says what a run's files are called; nobody writes the names again."""
    names = ast.parse((PACKAGE / "files/names.py").read_text(encoding="utf-8"))
    spelt = {
        node.value.rsplit("/")[-1]
        for node in ast.walk(names)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.endswith((".yaml", ".json", ".jsonl"))
    }
    assert spelt
    wrong = [
        f"{place(file, node.lineno)}: {node.value!r}"
        for file in MODULES
        if file.name != "names.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in spelt
    ]
    assert not wrong, "\n".join(wrong)
