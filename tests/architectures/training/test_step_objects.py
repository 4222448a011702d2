"""The source of the training steps: nothing hangs on tensors, no method is called through Any."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sae_lens_bipolar

PACKAGE = Path(sae_lens_bipolar.__file__).parent
FILES = sorted(
    file for folder in ("architectures", "sparse") for file in (PACKAGE / folder).rglob("*.py")
)
# Names that may have attributes set: the object itself, autograd's context, a parameter's data.
OWNERS = {"self", "cls", "ctx"}
PROPERTIES = {"data", "grad"}


def attributes_set_on_others(tree: ast.AST) -> Iterator[ast.AST]:
    """Assignments to an attribute of anything that is not the method's own object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            own = isinstance(node.value, ast.Name) and node.value.id in OWNERS
            if not own and node.attr not in PROPERTIES:
                yield node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            on = node.args[0] if node.args else None
            own = isinstance(on, ast.Name) and on.id in OWNERS
            if node.func.id in ("setattr", "delattr") and not own:
                yield node


def methods_called_through_any(tree: ast.AST) -> Iterator[ast.AST]:
    """`super()` anywhere but before a dot, and the attributes of `super()` fetched by name."""
    called = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "super" and (node.args or id(node) not in called):
            yield node
        if node.func.id == "cast" and any("Any" in ast.dump(a) for a in node.args[:1]):
            yield node


@pytest.mark.parametrize("check", [attributes_set_on_others, methods_called_through_any])
def test_steps_are_typed_and_hang_nothing_on_tensors(check) -> None:  # type: ignore[no-untyped-def]
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for file in FILES
        for node in check(ast.parse(file.read_text()))
    ]
    assert len(FILES) > 20
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (attributes_set_on_others, "latents.with_dead = both, u"),
        (attributes_set_on_others, "gates.support, gates.u = support, u"),
        (attributes_set_on_others, "setattr(parameter, '_mark', True)"),
        (methods_called_through_any, "dense: Any = super()"),
        (methods_called_through_any, "getattr(super(), 'decode')(z)"),
        (methods_called_through_any, "cast(Any, self).decode(z)"),
    ],
)
def test_the_checks_see_what_they_are_for(check, source: str) -> None:  # type: ignore[no-untyped-def]
    assert list(check(ast.parse(source)))
