"""Values in a model card, each quoted for where it stands.

What a card shows comes from files that may be a stranger's: a model's name can hold a quote and
Python, a link, raw HTML or the end of a code block. Nothing reaches the page as it is: the
templates' environment quotes every value as Markdown text unless a filter says otherwise.

text      a line of Markdown, also in a table; what would become a link or an address is shown as
          code. What needs no quoting does without
code      a code span, also in a table
fenced    a code block, its fence longer than any in it
python    a string literal
link      a link to a page of the Hub
path      the target of a link to a file of the repository
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from sae_lens_bipolar.errors import shown

ABSENT = "–"
_LONGEST = 200  # characters of a value in a line
_LONGEST_BLOCK = 4000  # and in a code block
_LINKS = re.compile(r"://|www\.|@", re.I)
# An underscore inside a word (`sign_aware_gated`) is none of Markdown's, and reads better as it is.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)|^(?:[-+=:#]|\d+[.)](?= |$))")
_HUB = "https://huggingface.co/"


class Quoted(str):
    """Text that is quoted already."""


def text(value: Any) -> Quoted:
    """`value` as plain text in a line of Markdown: characters of its syntax become entities."""
    line = _line(value)
    if _LINKS.search(line):
        return code(line)
    return Quoted(_MARKDOWN.sub(_entities, line))


def code(value: Any) -> Quoted:
    """`value` as a code span; a `|`, which would end a table's cell, is shown as `¦`."""
    line = _line(value).replace("|", "¦") or ABSENT
    delimiter = "`" * (_longest_run(line) + 1)
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return Quoted(f"{delimiter}{pad}{line}{pad}{delimiter}")


def fenced(value: Any, language: str = "") -> Quoted:
    """`value` as a code block, to stand at the beginning of a line."""
    block = shown(value, _LONGEST_BLOCK).strip("\n")
    fence = "`" * max(3, _longest_run(block) + 1)
    return Quoted(f"{fence}{language}\n{block}\n{fence}")


def python(value: str) -> Quoted:
    """`value` as a literal of Python; holds no backtick, so that no code block ends in it."""
    literal = repr(value)
    if literal.startswith("'") and '"' not in literal and "\\'" not in literal:
        literal = f'"{literal[1:-1]}"'
    return Quoted(literal.replace("`", r"\x60"))


def link(name: str, kind: str = "") -> Quoted:
    """A link to the model `name` on the Hub, or with `kind` "datasets/" to a data set."""
    line = _line(name)
    return Quoted(f"[{_MARKDOWN.sub(_entities, line)}]({_HUB}{kind}{quote(line, safe='/')})")


def path(value: str) -> Quoted:
    """`value` as the target of a link within the repository."""
    return Quoted(quote(value, safe="/"))


def codes(values: Iterable[Any], separator: str = ", ") -> Quoted:
    """`values`, each as a code span, with `separator` between them."""
    return Quoted(separator.join(map(code, values)))


def finalise(value: Any) -> Quoted:
    """`value` as it may stand in a template: as text, unless a filter has quoted it."""
    return value if isinstance(value, Quoted) else text(value)


def environment(folder: Path) -> jinja2.Environment:
    """Templates of Markdown in `folder`, whose every value is quoted."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=False,  # of HTML; `finalise` does more
        finalize=finalise,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter in (text, code, codes, fenced, python, link, path):
        found.filters[filter.__name__] = filter
    return found


def _line(value: Any) -> str:
    """`value` in one line of at most about `_LONGEST` characters, without what steers a screen."""
    return " ".join(shown("" if value is None else value, _LONGEST).split())


def _longest_run(line: str) -> int:
    return max(map(len, re.findall("`+", line)), default=0)


def _entities(found: re.Match[str]) -> str:
    return "".join(c if c.isalnum() or c.isspace() else f"&#{ord(c)};" for c in found.group())
