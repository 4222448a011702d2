"""Small changes to source code: what can be changed, and the module with one change made.

A change is one that a test of the arithmetic should notice: an operator, a sign, a bound, an axis,
a term or statement left out, two arguments exchanged, a condition turned round. Messages, strings,
annotations, raised errors, assertions and logging are left alone.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULE = "<module>"
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_TERMS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
# Functions, and methods, each exchanged for the other.
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "round": "int"}
_METHODS = (
    *(("sum", "mean"), ("any", "all"), ("min", "max"), ("amin", "amax"), ("minimum", "maximum")),
    *(("add_", "sub_"), ("mul_", "div_")),
)
_EXCHANGED = {a: b for pair in _METHODS for a, b in (pair, pair[::-1])}
# Methods without which `x.method(...)` is still a tensor like `x`.
_LEFT_OUT = (
    *("detach", "abs", "relu", "clamp", "clamp_", "exp", "log", "sqrt", "round", "clone"),
    *("double", "float", "sign", "t"),
)
_ORDERED = ("isinstance", "getattr", "setattr", "hasattr", "super", "replaced")
_TYPES = {"None", "int", "float", "str"}  # in unions
_GUARDS = ("strict", "exist_ok", "parents", "verbose")  # of errors that are never to happen
_LONGEST = 100  # characters of an expression that stands for a constant in it
_SILENT = ("logger", "logging", "warnings", "tqdm", "progress")


@dataclass(frozen=True)
class Mutant:
    """One change of one expression or statement.

    Args:
        file: path of the module from the root of the repository.
        function: qualified name of the function the change is in, or `<module>`.
        before: the expression (of a constant or argument, the one around it) or statement.
        after: the same with the change.
        nth: which of several like it in that function, from 1.
        line: where it is now; no part of the key.
        node: its number, in the order of `ast.walk`.
        choice: which of that node's changes.
    """

    file: str
    function: str
    before: str
    after: str
    nth: int
    line: int
    node: int
    choice: int

    @property
    def key(self) -> str:
        """What names it for as long as the function has this expression, wherever it stands."""
        again = f" (number {self.nth})" if self.nth > 1 else ""
        return f"{self.file} | {self.function} | {self.before} => {self.after}{again}"


def mutants_of(source: str, file: str) -> list[Mutant]:
    """Every mutant of a module, in the order of the source.

    Args:
        source: its text.
        file: its path, for the keys.
    """
    tree, parents = _parsed(source)
    found, seen = [], Counter[tuple[str, str, str]]()
    for number, node in enumerate(ast.walk(tree)):
        if not isinstance(node, ast.expr | ast.stmt | ast.comprehension) or _is_spared(
            node, parents
        ):
            continue
        for choice, changed in enumerate(_changes(node, parents)):
            function, shown = _function(node, parents), _shown(node, parents)
            before = _text(shown)
            after = _text(_Replace(node, changed).visit(shown))
            if shown is not node:
                _Replace(changed, node).visit(shown)  # as it was
            seen[function, before, after] += 1
            nth = seen[function, before, after]
            line = getattr(node, "lineno", getattr(shown, "lineno", 0))
            found.append(Mutant(file, function, before, after, nth, line, number, choice))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.node, mutant.choice))


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module with the change made, to be compiled; its lines are those of the source."""
    tree, parents = _parsed(source)
    node = next(n for number, n in enumerate(ast.walk(tree)) if number == mutant.node)
    changed = list(_changes(node, parents))[mutant.choice]
    return ast.fix_missing_locations(_Replace(node, changed).visit(tree))


def functions_at(path: Path) -> dict[int, str]:
    """The innermost function at each line of a module that is inside one."""
    found: dict[int, str] = {}
    tree, parents = _parsed(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # outer ones first
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            name = _function(node.body[0], parents)
            found |= dict.fromkeys(range(first, (node.end_lineno or first) + 1), name)
    return found


def _parsed(source: str) -> tuple[ast.Module, dict[ast.AST, ast.AST]]:
    """The tree, and each node's parent."""
    tree = ast.parse(source)
    return tree, {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def _is_spared(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a node is part of a message, an annotation, a check of a type or the like."""
    while (parent := parents.get(node)) is not None:
        match node:
            case ast.JoinedStr() | ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom():
                return True
            case ast.Call(func) | ast.Expr(ast.Call(func)) if _is_silent(func):
                return True
            case ast.BinOp(left, ast.BitOr(), right) if {_text(left), _text(right)} & _TYPES:
                return True
            case ast.keyword(arg) if arg in _GUARDS:
                return True
        match parent:
            case ast.AnnAssign(annotation=hint) if node is hint or _text(hint) == "TypeAlias":
                return True
            case ast.arg():
                return True
            case ast.FunctionDef() if node is parent.returns or node in parent.decorator_list:
                return True
            case ast.ClassDef() if node not in parent.body:
                return True
        node = parent
    return False


def _is_silent(func: ast.expr) -> bool:
    return _text(func).split(".")[0] in _SILENT


def _changes(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:i], other(), *ops[i + 1 :]], comparators)
        case ast.BinOp(left, op, right):
            if type(op) in _OPERATORS and not _is_text(left) and not _is_text(right):
                yield ast.BinOp(left, _OPERATORS[type(op)](), right)
                if isinstance(op, _TERMS) and not isinstance(right, ast.Constant):
                    yield left
        case ast.UnaryOp(op, operand):
            if isinstance(op, ast.USub | ast.Not | ast.Invert):
                yield operand
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for i in range(len(values)):
                rest = [*values[:i], *values[i + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.IfExp(test, body, orelse) if _is_simple(test):
            yield ast.IfExp(test, orelse, body)
        case ast.comprehension(ifs=[_, *_]):
            for i in range(len(node.ifs)):
                rest = [*node.ifs[:i], *node.ifs[i + 1 :]]
                yield ast.comprehension(node.target, node.iter, rest, node.is_async)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
            if value == 1:
                yield ast.Constant(0)
        case ast.Constant(float() as value):
            yield ast.Constant(value * 2 if value else 1.0)
        case ast.Call():
            yield from _changes_of_call(node)
        case ast.AugAssign(target, op, value):
            if type(op) in _OPERATORS and not _is_text(value):
                yield ast.AugAssign(target, _OPERATORS[type(op)](), value)
                yield ast.Pass()
        case ast.If(test, body, orelse) if _is_simple(test):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Expr(ast.Call()):
            yield ast.Pass()


def _changes_of_call(node: ast.Call) -> Iterator[ast.AST]:
    func, args, keywords = node.func, node.args, node.keywords
    name = func.id if isinstance(func, ast.Name) else ""
    if name in _FUNCTIONS:
        yield ast.Call(ast.Name(_FUNCTIONS[name], ast.Load()), args, keywords)
    if name == "int" and isinstance(args[0], ast.BinOp):
        yield ast.Call(ast.Name("round", ast.Load()), args, keywords)
    if isinstance(func, ast.Attribute):
        if func.attr in _EXCHANGED:
            other = ast.Attribute(func.value, _EXCHANGED[func.attr], ast.Load())
            yield ast.Call(other, args, keywords)
        if func.attr in _LEFT_OUT and _text(func.value) not in ("torch", "math", "np", "F"):
            yield func.value
    first = 1 if _text(func) == "torch.where" else 0
    pair = args[first : first + 2]
    if name not in _ORDERED and len(pair) == 2 and _are_alike(*pair):
        yield ast.Call(func, [*args[:first], *pair[::-1], *args[first + 2 :]], keywords)


def _is_simple(test: ast.expr) -> bool:
    """Whether a condition has no operator that a change of its own turns round."""
    return not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp)


def _are_alike(one: ast.expr, other: ast.expr) -> bool:
    """Whether both are variables, attributes or numbers, as two arguments of one type often are."""
    numbers = [isinstance(getattr(arg, "value", None), int | float) for arg in (one, other)]
    plain = isinstance(one, ast.Name | ast.Attribute) or all(numbers)
    return plain and type(one) is type(other)


def _is_text(node: ast.AST) -> bool:
    is_string = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_string or isinstance(node, ast.JoinedStr)


def _function(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    names: list[str] = []
    in_function = False
    while (parent := parents.get(node)) is not None:
        if isinstance(parent, ast.FunctionDef) and (node in parent.body or node is parent.args):
            in_function = True
            names.insert(0, parent.name)
        elif isinstance(parent, ast.ClassDef):
            names.insert(0, parent.name)
        node = parent
    return ".".join(names) if in_function else ".".join([MODULE, *names])


def _shown(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """The node itself or, where it would say little, the expression around it."""
    if isinstance(node, ast.Constant | ast.UnaryOp | ast.comprehension | ast.keyword):
        parent = parents[node]
        if isinstance(parent, ast.expr | ast.keyword | ast.comprehension):
            around = _shown(parent, parents)
            return parent if len(_text(around)) > _LONGEST else around
        if isinstance(parent, ast.Assign | ast.AnnAssign | ast.Return | ast.AugAssign):
            return parent
    return node


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}:"
    return " ".join(ast.unparse(node).split())


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)
