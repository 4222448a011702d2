"""Signed sparse autoencoders for SAELens; importing this package registers its architectures.

The names below are loaded when they are first used, so that a name which a host has lost costs what
needs it and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sae_lens_bipolar.architectures.record import Architecture, Sides
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, register, unregister
from sae_lens_bipolar.errors import host_lacks

if TYPE_CHECKING:
    from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig
    from sae_lens_bipolar.architectures.batch_abstopk import (
        BatchAbsTopKTrainingSAEConfig,
        MatryoshkaBatchAbsTopKTrainingSAEConfig,
    )
    from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUTrainingSAEConfig
    from sae_lens_bipolar.architectures.bi_topk import BiTopKTrainingSAEConfig
    from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
    from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
    from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
    from sae_lens_bipolar.architectures.unrolled_abstopk import UnrolledAbsTopKTrainingSAEConfig
    from sae_lens_bipolar.evaluation.describe import describe_latents
    from sae_lens_bipolar.evaluation.reconstruction import measure
    from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
    from sae_lens_bipolar.inputs.models import load_model
    from sae_lens_bipolar.polarity import census, merge, split
    from sae_lens_bipolar.runs.checkpoints import load_sae
    from sae_lens_bipolar.runs.sweep import run_sweep
    from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE
    from sae_lens_bipolar.steering import (  # not `steering`: at the root that is the subpackage
        AblateDirection,
        AddVector,
        EditLatents,
        difference_in_means,
        find_latents,
        measure_scale,
    )

__version__ = "0.2.0"

# Public name -> the module of this package that it is loaded from.
_HOMES = {
    "AblateDirection": "steering",
    "AbsTopKTrainingSAEConfig": "architectures.abstopk",
    "AddVector": "steering",
    "BatchAbsTopKTrainingSAEConfig": "architectures.batch_abstopk",
    "BiJumpReLUTrainingSAEConfig": "architectures.bi_jumprelu",
    "BiTopKTrainingSAEConfig": "architectures.bi_topk",
    "EditLatents": "steering",
    "GatedL0TrainingSAEConfig": "architectures.gated_l0",
    "MatryoshkaBatchAbsTopKTrainingSAEConfig": "architectures.batch_abstopk",
    "SignAwareGatedTrainingSAEConfig": "architectures.sign_aware_gated",
    "SparseTopKTrainingSAEConfig": "architectures.sparse_topk",
    "SweepConfig": "runs.sweep_config",
    "SweepSAE": "runs.sweep_config",
    "UnrolledAbsTopKTrainingSAEConfig": "architectures.unrolled_abstopk",
    "census": "polarity",
    "describe_latents": "evaluation.describe",
    "difference_in_means": "steering",
    "find_latents": "steering",
    "load_documents": "inputs.corpora",
    "load_model": "inputs.models",
    "load_sae": "runs.checkpoints",
    "measure": "evaluation.reconstruction",
    "measure_scale": "steering",
    "merge": "polarity",
    "run_sweep": "runs.sweep",
    "split": "polarity",
    "split_tokens": "inputs.corpora",
}
_FOLDERS = ("evaluation", "files", "inputs", "polarity", "runs", "sparse", "steering")

register()


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except (ImportError, AttributeError) as error:
        raise host_lacks(f"{__name__}.{name}", error) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "ARCHITECTURES",
    "AblateDirection",
    "AbsTopKTrainingSAEConfig",
    "AddVector",
    "Architecture",
    "BatchAbsTopKTrainingSAEConfig",
    "BiJumpReLUTrainingSAEConfig",
    "BiTopKTrainingSAEConfig",
    "EditLatents",
    "GatedL0TrainingSAEConfig",
    "MatryoshkaBatchAbsTopKTrainingSAEConfig",
    "Sides",
    "SignAwareGatedTrainingSAEConfig",
    "SparseTopKTrainingSAEConfig",
    "SweepConfig",
    "SweepSAE",
    "UnrolledAbsTopKTrainingSAEConfig",
    "__version__",
    "census",
    "describe_latents",
    "difference_in_means",
    "find_latents",
    "load_documents",
    "load_model",
    "load_sae",
    "measure",
    "measure_scale",
    "merge",
    "register",
    "run_sweep",
    "split",
    "split_tokens",
    "unregister",
]
