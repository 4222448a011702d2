"""Which architectures exist, and how they sit beside SAELens's own.

Published weights name their architecture with `PREFIX` ("sae_lens_bipolar.sign_aware_gated"): a
SAELens without this package raises KeyError with just that name, so the name says what to import.

SAELens keeps two tables, one of training and one of inference classes, and refuses a second entry
under a name. `register` fills free names, takes over only the training slot of `abstopk` (a drop-in
for SAELens's class: same config, loss, gradients and files), and never raises on a clash.
`unregister` puts everything back.
"""

import logging
from typing import Any, NamedTuple

from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAEConfig
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig

from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopKTrainingSAE,
    BatchAbsTopKTrainingSAEConfig,
    MatryoshkaBatchAbsTopKTrainingSAE,
    MatryoshkaBatchAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_jumprelu import (
    BiJumpReLUSAE,
    BiJumpReLUSAEConfig,
    BiJumpReLUTrainingSAE,
    BiJumpReLUTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_topk import (
    BiTopKSAE,
    BiTopKSAEConfig,
    BiTopKTrainingSAE,
    BiTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAE, GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedSAE,
    SignAwareGatedSAEConfig,
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.sparse_topk import (
    SparseTopKTrainingSAE,
    SparseTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.unrolled_abstopk import (
    UnrolledAbsTopKSAE,
    UnrolledAbsTopKSAEConfig,
    UnrolledAbsTopKTrainingSAE,
    UnrolledAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.sparse import fused_adam

logger = logging.getLogger(__name__)


class Architecture(NamedTuple):
    """What one name stands for; a slot left None stays SAELens's own."""

    training: tuple[type[TrainingSAE[Any]], type[TrainingSAEConfig]]
    inference: tuple[type[SAE[Any]], type[SAEConfig]] | None = None
    takes_over: bool = False  # replaces SAELens's own training class of that name


ARCHITECTURES: dict[str, Architecture] = {
    "abstopk": Architecture((AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig), takes_over=True),
    "sign_aware_gated": Architecture(
        (SignAwareGatedTrainingSAE, SignAwareGatedTrainingSAEConfig),
        (SignAwareGatedSAE, SignAwareGatedSAEConfig),
    ),
    "bi_jumprelu": Architecture(
        (BiJumpReLUTrainingSAE, BiJumpReLUTrainingSAEConfig), (BiJumpReLUSAE, BiJumpReLUSAEConfig)
    ),
    "batch_abstopk": Architecture((BatchAbsTopKTrainingSAE, BatchAbsTopKTrainingSAEConfig)),
    "matryoshka_batch_abstopk": Architecture(
        (MatryoshkaBatchAbsTopKTrainingSAE, MatryoshkaBatchAbsTopKTrainingSAEConfig)
    ),
    "bi_topk": Architecture(
        (BiTopKTrainingSAE, BiTopKTrainingSAEConfig), (BiTopKSAE, BiTopKSAEConfig)
    ),
    "unrolled_abstopk": Architecture(
        (UnrolledAbsTopKTrainingSAE, UnrolledAbsTopKTrainingSAEConfig),
        (UnrolledAbsTopKSAE, UnrolledAbsTopKSAEConfig),
    ),
    # Unsigned, for fair comparisons: saved as stock `topk` and `gated`.
    "sparse_topk": Architecture((SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig)),
    "gated_l0": Architecture((GatedL0TrainingSAE, GatedL0TrainingSAEConfig)),
}

PREFIX = "sae_lens_bipolar."  # of the second name under which inference classes are registered

# (table, name) -> what stood there before, None where nothing did.
_replaced: dict[tuple[str, str], Any] = {}
_TABLES: dict[str, dict[str, Any]] = {
    "training": SAE_TRAINING_CLASS_REGISTRY,
    "inference": SAE_CLASS_REGISTRY,
}


def register() -> None:
    """Enter every architecture into SAELens's registry; a second call changes nothing.

    Where another package holds a name already, its entry stays and a warning says so: the classes
    of this package can still be imported and passed to SAELens's runners as `override_sae`.
    """
    fused_adam.enable()
    for name, architecture in ARCHITECTURES.items():
        _enter("training", name, architecture.training, architecture.takes_over)
        if architecture.inference is not None:
            _enter("inference", name, architecture.inference, False)
            _enter("inference", PREFIX + name, architecture.inference, False)


def published_name(architecture: str) -> str:
    """`architecture` as published weights name it: with `PREFIX` unless stock SAELens has it."""
    known = ARCHITECTURES.get(architecture)
    return PREFIX + architecture if known is not None and known.inference else architecture


def unregister() -> None:
    """Undo `register`: SAELens's registry is as it was. Entries others have changed since stay."""
    fused_adam.disable()
    for (table_name, name), before in _replaced.items():
        table = _TABLES[table_name]
        if table.get(name) != getattr(ARCHITECTURES[name.removeprefix(PREFIX)], table_name):
            continue
        if before is None:
            del table[name]
        else:
            table[name] = before
    _replaced.clear()


def _enter(table_name: str, name: str, entry: tuple[Any, Any], takes_over: bool) -> None:
    table = _TABLES[table_name]
    present = table.get(name)
    if present == entry:
        return
    if present is not None and not (takes_over and _is_host_class(present[0])):
        logger.warning(
            "SAELens's %s registry already holds %r (%s.%s); sae-lens-bipolar leaves it in place",
            *(table_name, name, present[0].__module__, present[0].__qualname__),
        )
        return
    _replaced[(table_name, name)] = present
    table[name] = entry


def _is_host_class(registered: type[Any]) -> bool:
    return registered.__module__.split(".")[0] == "sae_lens"
