"""The options that dataclasses declare, read from their source: nothing is imported.

A help page would otherwise wait several seconds for torch. A field's sentence stands once, as the
comment on its line or as its entry under `Args:` in the class's docstring.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*)(?: \([^\n]*?\))?: (?P<text>.*)$")


class Option(NamedTuple):
    """One field of a dataclass."""

    name: str
    kind: str  # its annotation, as written
    default: str | None  # as a reader would write it; None where there is none, or it is None
    sentence: str  # "" where neither comment nor docstring has one


@cache
def options_of(module: str, name: str) -> dict[str, Option]:
    """The fields of dataclass `name` in `module`, those of its bases first.

    Raises:
        LookupError: if the module's source has no such class.
    """
    tree, comments = _parsed(module)
    node = _definition(tree, name)
    if not isinstance(node, ast.ClassDef):
        raise LookupError(f"{module} defines no class {name}")
    found: dict[str, Option] = {}
    for base in reversed(node.bases):
        base = base.value if isinstance(base, ast.Subscript) else base
        if (place := _place(module, ast.unparse(base))) is not None:
            found |= options_of(*place)
    sentences = _entries(ast.get_docstring(node, clean=True) or "")
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        field, kind = line.target.id, ast.unparse(line.annotation)
        if kind.startswith("ClassVar"):
            continue
        comment = comments.get(line.end_lineno or line.lineno, "")
        said = sentences.get(field, "") if comment.startswith("type:") else comment
        said = said or sentences.get(field, "")
        said = said or (found[field].sentence if field in found else "")
        found[field] = Option(field, kind, _shown(module, line.value), said)
    own = {ast.unparse(line.target) for line in node.body if isinstance(line, ast.AnnAssign)}
    for field in (set(found) & set(sentences)) - own:  # a subclass says more of what it inherits
        found[field] = found[field]._replace(sentence=sentences[field])
    return found


@cache
def constant(module: str, name: str) -> Any:
    """The value of a module's constant that is written out in its source.

    Raises:
        LookupError: if there is none, or it is computed.
    """
    value = _definition(_parsed(module)[0], name)
    try:
        return ast.literal_eval(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise LookupError(f"{module} has no constant {name} that is written out") from error


@cache
def architectures() -> dict[str, tuple[str, str]]:
    """Names of SAELens's and this package's trainable architectures -> module, configuration."""
    found = {}
    for package in ("sae_lens.saes", "sae_lens_bipolar.architectures"):
        for file in sorted(_file(package).parent.glob("*.py")):
            module = f"{package}.{file.stem}"
            for node in _parsed(module)[0].body:
                if isinstance(node, ast.ClassDef) and node.name.endswith("TrainingSAEConfig"):
                    for name in _returned(node):
                        found[name] = (module, node.name)
    return found


def _returned(node: ast.ClassDef) -> Iterator[str]:
    """What the method `architecture` of a configuration returns, if it is written out."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "architecture":
            last = method.body[-1]
            if isinstance(last, ast.Return) and isinstance(last.value, ast.Constant):
                yield str(last.value.value)


def _file(module: str) -> Path:
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"{top} is not installed")
    path = Path(spec.submodule_search_locations[0], *rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _parsed(module: str) -> tuple[ast.Module, dict[int, str]]:
    """The syntax tree of a module, and the comments at the ends of its lines."""
    text = _file(module).read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }
    return ast.parse(text), comments


def _definition(tree: ast.Module, name: str) -> ast.AST | None:
    """The class, or the value of the assignment, that `name` stands for at a module's top."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return node.value
    return None


def _place(module: str, name: str) -> tuple[str, str] | None:
    """Module and name of what `name` means in `module`; None for a host's without source."""
    first, _, rest = name.partition(".")
    tree, _ = _parsed(module)
    if not rest and _definition(tree, name) is not None:
        return module, name
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) != first or (node.module or "").split(".")[0] not in (
                "sae_lens",
                "sae_lens_bipolar",
            ):
                continue
            return (f"{node.module}.{alias.name}", rest) if rest else (str(node.module), alias.name)
    return None


def _shown(module: str, value: ast.AST | None) -> str | None:
    """A default as a reader would write it."""
    if value is None:
        return None
    if isinstance(value, ast.Name) and (place := _place(module, value.id)) is not None:
        return _shown(place[0], _definition(_parsed(place[0])[0], place[1]))
    try:
        found = ast.literal_eval(value)  # type: ignore[arg-type]
    except ValueError:
        return None
    if isinstance(found, tuple | list):
        return ",".join(map(str, found)) or None
    return None if found is None else str(found)


def _entries(docstring: str) -> dict[str, str]:
    """Field -> sentence, of the section `Args:` of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.M | re.S)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (section.group(1) if section else "").splitlines():
        if (entry := _ENTRY.match(line)) is not None:
            names = entry["names"].split(", ")
            found |= dict.fromkeys(names, entry["text"])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
