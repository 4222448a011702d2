"""Parsers that say every option in a sentence, and the near name of one that is misspelt."""

import argparse
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from typing_extensions import override

from sae_lens_bipolar.cli.declared import Option, options_of
from sae_lens_bipolar.errors import did_you_mean

_WIDTH = 110  # columns of a help page, whatever the terminal: one line per option
_TYPES = {"int": int, "float": float, "str": str}


class Help(argparse.RawDescriptionHelpFormatter):
    """One line per option, its default behind it."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=38, width=_WIDTH)

    @override
    def _get_help_string(self, action: argparse.Action) -> str:
        said, default = action.help or "", action.default
        if not action.option_strings or default in (None, False, argparse.SUPPRESS):
            return said
        return said if "default" in said else f"{said} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors name what is near.

    Args:
        examples: command lines, shown at the end of the help.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any):
        shown = "\n".join(f"  {line}" for line in examples)
        epilog = f"examples:\n{shown}" if examples else None
        super().__init__(*args, formatter_class=Help, epilog=epilog, **kwargs)

    def refuse_unknown(self, rest: Sequence[str]) -> None:
        """End the command, with exit code 2, if words of the command line were not understood."""
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            near = did_you_mean(rest[0].partition("=")[0], known)
            self.error(f"unrecognised arguments: {' '.join(rest)}{near}")

    @override
    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found is not None:
            choices = [choice.strip("' ") for choice in found[2].split(",")]
            message += did_you_mean(found[1], choices)
        super().error(message)


def add_declared(
    parser: argparse._ActionsContainer, module: str, name: str, skip: Collection[str] = ()
) -> None:
    """An option for every field of a dataclass that is read from its source (see `declared`).

    One that is not given is None: the dataclass has the defaults.
    """
    for option in options_of(module, name).values():
        if option.name not in skip:
            _add(parser, option)


def _add(parser: argparse._ActionsContainer, option: Option) -> None:
    flag, said = "--" + option.name.replace("_", "-"), sentence(option)
    if option.kind == "bool":
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=said)
        return
    inner = re.search(r"tuple\[(\w+)", option.kind)
    kind = _TYPES[inner[1] if inner else option.kind.removesuffix(" | None")]
    parse = _several(kind) if inner else kind
    metavar = f"{kind.__name__},..." if inner else kind.__name__
    parser.add_argument(flag, type=parse, default=None, metavar=metavar, help=said)


def sentence(option: Option) -> str:
    """What a help page says of an option: its sentence and its default."""
    said = option.sentence.rstrip(".").replace("%", "%%")
    if option.default is None or "default" in said:
        return said
    shown = option.default if len(option.default) <= 45 else f"{option.default[:42]}..."
    return f"{said} (default: {shown})"


def _several(kind: type) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(one.strip()) for one in text.split(",") if one.strip())

    parse.__name__ = f"list of {kind.__name__}"  # as argparse's message calls it
    return parse
