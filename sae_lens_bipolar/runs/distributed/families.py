"""Which class trains one rank's latents of each architecture."""

from typing import Any

from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig

from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopKTrainingSAE,
    MatryoshkaBatchAbsTopKTrainingSAE,
)
from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUTrainingSAE
from sae_lens_bipolar.architectures.bi_topk import BiTopKTrainingSAE
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAE
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAE
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAE
from sae_lens_bipolar.architectures.unrolled_abstopk import UnrolledAbsTopKTrainingSAE
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.runs.distributed import thresholds, top_k
from sae_lens_bipolar.runs.distributed.sharded import Sharded

SHARDED: dict[type[TrainingSAE[Any]], type[Sharded]] = {
    AbsTopKTrainingSAE: top_k.ShardedAbsTopK,
    SparseTopKTrainingSAE: top_k.ShardedSparseTopK,
    BiTopKTrainingSAE: top_k.ShardedBiTopK,
    UnrolledAbsTopKTrainingSAE: top_k.ShardedUnrolledAbsTopK,
    BatchAbsTopKTrainingSAE: top_k.ShardedBatchAbsTopK,
    MatryoshkaBatchAbsTopKTrainingSAE: top_k.ShardedMatryoshka,
    SignAwareGatedTrainingSAE: thresholds.ShardedSignAwareGated,
    GatedL0TrainingSAE: thresholds.ShardedGatedL0,
    BiJumpReLUTrainingSAE: thresholds.ShardedBiJumpReLU,
}


def sharded_class(sae: TrainingSAE[TrainingSAEConfig]) -> type[Sharded]:
    """The class that trains one rank's latents of `sae`.

    Raises:
        ConfigError: naming the architecture, if it trains in one process only, or the dtype.
    """
    found = SHARDED.get(type(sae))
    name = sae.cfg.architecture()
    if found is None:
        known = sorted(cls.__name__.removesuffix("TrainingSAE") for cls in SHARDED)
        raise ConfigError(
            f"architecture={name!r} ({type(sae).__name__}) trains in one process only: start it "
            f"without torchrun, or choose one of {', '.join(known)}"
        )
    if sae.cfg.dtype != "float32":
        raise ConfigError(
            f"dtype={sae.cfg.dtype!r} of SAE {name!r} is not allowed on several ranks: float32"
        )
    return found


def whole_class(sae: Sharded) -> type[TrainingSAE[Any]]:
    """The class of `sae` in one process."""
    return next(whole for whole, sharded in SHARDED.items() if type(sae) is sharded)
