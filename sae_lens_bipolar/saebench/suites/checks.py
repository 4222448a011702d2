"""Whether a suite's record agrees with itself, with its file and with its options."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.saebench.options import PROTOCOLS, CommonOptions
from sae_lens_bipolar.saebench.suites.record import COMMON, Headline, Suite, require_allowed


def check(suite: Suite[Any]) -> None:
    """Refuse a record that contradicts itself, its file or its options.

    Raises:
        ValueError: naming the suite and the fact.
    """
    for fact, problem in _problems(suite):
        raise ValueError(f"suite {suite.name!r}: {fact} {problem}")


def _problems(suite: Suite[Any]) -> Iterator[tuple[str, str]]:
    """(fact, what is wrong with it); each may rely on those before it."""
    for fact in ("run", "read", "needs"):
        if not callable(getattr(suite, fact)):
            yield fact, "is not a function"
    if suite.refusal is not None and not callable(suite.refusal):
        yield "refusal", "is neither a function nor None"
    module = suite.run.__module__.rpartition(".")[2]
    if suite.name != module:
        yield "name", f"is not that of the file of its function `run`, {module}.py"
    if not suite.label.strip():
        yield "label", "is empty"
    if not suite.host.startswith("sae_bench.evals."):
        yield "host", f"is {suite.host!r}, not a module of SAEBench's suites"
    if not isinstance(suite.labelled, bool):
        yield "labelled", "is not a bool"
    yield from _problems_of_options(suite)
    yield from _problems_of_headline(suite.headline)


def _problems_of_options(suite: Suite[Any]) -> Iterator[tuple[str, str]]:
    if not (is_dataclass(suite.options) and issubclass(suite.options, CommonOptions)):
        yield "options", "is not a dataclass of options"
    own = suite.own_options
    if not own:
        yield "options", "has no option of its own"
    for fact in ("allowed", "small", "paths", "texts"):
        for name in getattr(suite, fact):
            if name not in own:
                yield fact, f"names {name!r}, which is not an option of its own"
    for name in suite.cache.options if suite.cache else ():
        if name not in (*COMMON, *own):
            yield "cache", f"names {name!r}, which is not an option"
    for name, allowed in suite.allowed.items():
        for value in (getattr(suite.options, name), suite.small.get(name, allowed[0])):
            try:
                require_allowed(name, value, allowed)
            except ConfigError as error:
                yield "allowed", f"refuses a value of its own: {error}"


def _problems_of_headline(headline: Headline) -> Iterator[tuple[str, str]]:
    if headline.protocol not in PROTOCOLS:
        yield "headline.protocol", f"is {headline.protocol!r}, not one of {PROTOCOLS}"
    if not isinstance(headline.higher_is_better, bool):
        yield "headline.higher_is_better", "is not a bool"
    for fact in ("column", "measure"):
        text = getattr(headline, fact)
        if not text.strip():
            yield f"headline.{fact}", "is empty"
