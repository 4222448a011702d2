"""Signed sparse autoencoders for SAELens; importing this package registers its architectures."""

from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopKTrainingSAEConfig,
    MatryoshkaBatchAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUTrainingSAEConfig
from sae_lens_bipolar.architectures.bi_topk import BiTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.record import Architecture, Sides
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, register, unregister
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.unrolled_abstopk import UnrolledAbsTopKTrainingSAEConfig
from sae_lens_bipolar.evaluation.describe import describe_latents
from sae_lens_bipolar.evaluation.reconstruction import measure
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import load_model
from sae_lens_bipolar.polarity import census, merge, split
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.steering import (  # not `steering`: at the root that is the subpackage
    AblateDirection,
    AddVector,
    EditLatents,
    difference_in_means,
    find_latents,
    measure_scale,
)

__version__ = "0.1.0"

register()

__all__ = [
    "ARCHITECTURES",
    "AblateDirection",
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
    "split",
    "split_tokens",
    "unregister",
]
