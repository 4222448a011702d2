"""Which architectures are known, and how they sit beside SAELens's own.

`ARCHITECTURES` collects the records that the files of this folder end with. `register` enters their
classes into SAELens's registry, and adds records of your own: from then on they are split,
published, benchmarked and described like those of this package.

Published weights name their architecture with `PREFIX` ("sae_lens_bipolar.sign_aware_gated"): a
SAELens without this package raises KeyError with just that name, so the name says what to import.

SAELens keeps two tables, one of training and one of inference classes, and refuses a second entry
under a name. `register` fills free names, takes over only the training slot of `abstopk` (a drop-in
for SAELens's class: same config, loss, gradients and files), and never raises on a clash.
`unregister` puts everything back.

An architecture that needs a name which the installed SAELens does not have is missing from
`ARCHITECTURES`, alone; whoever asks for it is told what is lacking and which versions have it.
"""

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from sae_lens_bipolar.architectures import stock
from sae_lens_bipolar.architectures.record import Architecture
from sae_lens_bipolar.errors import ConfigError, HostError, did_you_mean, host_lacks
from sae_lens_bipolar.sparse import fused_adam, heap

try:
    from sae_lens import registry as _host
except ImportError:
    _host = None

logger = logging.getLogger(__name__)

PREFIX = "sae_lens_bipolar."  # of the second name under which inference classes are registered

# Architecture -> where its record stands: the module of this folder, and the name in it.
_RECORDS = {
    "abstopk": "abstopk.RECORD",
    "sign_aware_gated": "sign_aware_gated.RECORD",
    "bi_jumprelu": "bi_jumprelu.RECORD",
    "batch_abstopk": "batch_abstopk.RECORD",
    "matryoshka_batch_abstopk": "batch_abstopk.MATRYOSHKA",
    "bi_topk": "bi_topk.RECORD",
    "unrolled_abstopk": "unrolled_abstopk.RECORD",
    # Non-negative, for fair comparisons: saved as stock `topk` and `gated`.
    "sparse_topk": "sparse_topk.RECORD",
    "gated_l0": "gated_l0.RECORD",
}
ARCHITECTURES: dict[str, Architecture] = {}
_missing: dict[str, HostError] = {}  # architecture -> what the host lacks
for _name, _place in _RECORDS.items():
    _module, _, _attribute = _place.partition(".")
    try:
        _found = import_module(f"sae_lens_bipolar.architectures.{_module}")
        ARCHITECTURES[_name] = getattr(_found, _attribute)
    except (ImportError, AttributeError) as _error:  # a name of SAELens, moved or gone
        _missing[_name] = host_lacks(f"architecture {_name!r}", _error)
ARCHITECTURES |= {record.name: record for record in stock.RECORDS}
_OURS = tuple(ARCHITECTURES.values())

# (table, name) -> what stood there before, None where nothing did.
_replaced: dict[tuple[str, str], Any] = {}
_TABLES: dict[str, dict[str, Any]] = {  # one that SAELens lacks takes no entries
    table: getattr(_host, name)
    for table, name in (
        ("training", "SAE_TRAINING_CLASS_REGISTRY"),
        ("inference", "SAE_CLASS_REGISTRY"),
    )
    if hasattr(_host, name)
}


def register(*records: Architecture) -> None:
    """Enter every architecture into SAELens's registry; a second call changes nothing.

    Where another package holds a name already, its entry stays and a warning says so: the classes
    of this package can still be imported and passed to SAELens's runners as `override_sae`.

    Args:
        records: architectures of your own, which are added to `ARCHITECTURES` first. A name that
            is taken there keeps its record, with a warning.
    """
    fused_adam.enable()
    heap.enable()
    for error in _missing.values():
        logger.warning("%s", error)
    if len(_TABLES) < 2:
        logger.warning("sae_lens.registry lacks a table: some architectures are not registered")
    for record in records:
        known = ARCHITECTURES.setdefault(record.name, record)
        if known != record:
            logger.warning(
                "%r is the name of another architecture already (%s); its record stays. "
                "Choose another name, or unregister that record first",
                *(record.name, known.title),
            )
    for record in ARCHITECTURES.values():
        for table_name, name, entry in _slots(record):
            _enter(table_name, name, entry, record.takes_over)


def unregister(*records: Architecture) -> None:
    """Undo `register`: SAELens's registry is as it was. Entries others have changed since stay.

    Args:
        records: what to undo, and no more; without any, everything. Records that came by
            `register(record)` are forgotten.
    """
    if not records:
        fused_adam.disable()
        heap.disable()
    for record in records or tuple(ARCHITECTURES.values()):
        for table_name, name, entry in _slots(record):
            table, key = _TABLES[table_name], (table_name, name)
            if key not in _replaced or table.get(name) != entry:
                continue
            before = _replaced.pop(key)
            if before is None:
                del table[name]
            else:
                table[name] = before
        if record not in _OURS and ARCHITECTURES.get(record.name) == record:
            del ARCHITECTURES[record.name]
    if not records:
        _replaced.clear()


def find(architecture: str) -> Architecture:
    """The record of an architecture, named with or without `PREFIX`.

    Raises:
        ConfigError: if there is none.
        HostError: if the installed SAELens lacks what it needs.
    """
    name = architecture.removeprefix(PREFIX)
    require_loaded(name)
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"architecture {architecture!r} has no record, so neither its formula nor the sign of "
            "its latents is known; describe it by sae_lens_bipolar.register(Architecture(...))"
            f"{did_you_mean(name, ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def require_loaded(architecture: str) -> None:
    """Raise `HostError` if the installed SAELens lacks what an architecture needs; names both."""
    name = architecture.removeprefix(PREFIX)
    if name in _missing:
        raise _missing[name]


def record_of(config: Mapping[str, Any]) -> Architecture:
    """The record of a saved inference SAE, from its `cfg.json`, with its options applied.

    Raises:
        ConfigError: if its architecture has no record.
    """
    return find(config["architecture"]).of(config)


def published_name(architecture: str) -> str:
    """`architecture` as published weights name it: with `PREFIX` unless stock SAELens has it."""
    known = ARCHITECTURES.get(architecture)
    return PREFIX + architecture if known is not None and known.inference else architecture


def _slots(record: Architecture) -> list[tuple[str, str, Any]]:
    """The entries of a record in SAELens's registry: table, name, classes."""
    slots: list[tuple[str, str, Any]] = []
    if record.training is not None and "training" in _TABLES:
        slots.append(("training", record.name, record.training))
    if record.inference is not None and "inference" in _TABLES:
        slots.append(("inference", record.name, record.inference))
        slots.append(("inference", PREFIX + record.name, record.inference))
    return slots


def _enter(table_name: str, name: str, entry: tuple[Any, Any], takes_over: bool) -> None:
    table = _TABLES[table_name]
    present = table.get(name)
    if present == entry:
        return
    replaces = takes_over and table_name == "training"
    if present is not None and not (replaces and _is_host_class(present[0])):
        logger.warning(
            "SAELens's %s registry already holds %r (%s.%s); sae-lens-bipolar leaves it in place",
            *(table_name, name, present[0].__module__, present[0].__qualname__),
        )
        return
    _replaced[(table_name, name)] = present
    table[name] = entry


def _is_host_class(registered: type[Any]) -> bool:
    return registered.__module__.split(".")[0] == "sae_lens"
