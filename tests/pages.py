"""The pages a reader sees: README, CONTRIBUTING and docs/, their fenced blocks and their links."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
REPOSITORY = "https://github.com/sae-lens-bipolar/sae-lens-bipolar"
RAW = "https://raw.githubusercontent.com/sae-lens-bipolar/sae-lens-bipolar/main/"
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str
    reason: str | None  # why it is not run


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    return [
        Block(found["language"], found["text"], found["reason"]) for found in _FENCE.finditer(text)
    ]


def links(text: str) -> list[str]:
    """Where the links and images of a page point, those in fenced blocks and code left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    return _LINK.findall(prose)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    words = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"[\s-]+", "-", text) for text in words}


def script(pages: list[Path]) -> str:
    """A Python program that runs the blocks of the pages in order, shell commands among them."""
    parts = ["import subprocess as _subprocess"]
    for page in pages:
        for block in blocks(read(page)):
            if block.reason is None and block.language == "python":
                parts.append(block.text)
            elif block.reason is None and block.language == "bash":
                parts.append(f"_subprocess.run(['bash', '-e', '-c', {block.text!r}], check=True)")
    return "\n".join(parts)
