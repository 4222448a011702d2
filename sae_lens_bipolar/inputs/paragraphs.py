"""A long text as parts that end where a paragraph ends, read without holding all of it."""

import io
import re
from collections.abc import Iterator
from typing import TextIO

PART = 1_000  # least characters of a part, except the last
LONGEST_PART = 8_000  # most characters of a part
_SENTENCE = re.compile(r"[.!?][\"')\]]*\s+")


def parts_of(text: str | TextIO) -> Iterator[str]:
    """Parts of `text`, in order; joined they are the text again.

    A part ends at a blank line. If none comes for 8,000 characters, it ends where a line ends, else
    a sentence, else a word. At most two parts are held at once.
    """
    lines = io.StringIO(text, newline="") if isinstance(text, str) else text
    held = ""
    while line := lines.readline(LONGEST_PART):
        held += line
        if len(held) >= PART and not line.strip():
            yield held
            held = ""
        while len(held) >= LONGEST_PART:
            end = _end(held[:LONGEST_PART])
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _end(text: str) -> int:
    """Where to cut a text without a blank line, at least `PART` characters from its beginning."""
    line = text.rfind("\n", PART)
    if line >= 0:
        return line + 1
    sentences = [match.end() for match in _SENTENCE.finditer(text, PART)]
    if sentences:
        return sentences[-1]
    word = text.rfind(" ", PART)
    return word + 1 if word >= 0 else len(text)
