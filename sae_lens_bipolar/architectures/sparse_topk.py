"""SAELens's TopK, trained on the active latents only: the fair baseline beside `abstopk`."""

from dataclasses import dataclass

from sae_lens.saes.sae import SAEConfig
from sae_lens.saes.topk_sae import TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from typing_extensions import override

from sae_lens_bipolar.architectures.citations import TOPK
from sae_lens_bipolar.architectures.record import DECODE, LINEAR, Architecture
from sae_lens_bipolar.architectures.training.checks import check_fields, require_k
from sae_lens_bipolar.architectures.training.start import DataStartConfig
from sae_lens_bipolar.architectures.training.top_k_step import TopKOnPairs
from sae_lens_bipolar.errors import ConfigError


@dataclass
class SparseTopKTrainingSAEConfig(DataStartConfig, TopKTrainingSAEConfig):
    """Configuration of `SparseTopKTrainingSAE`: the fields of `TopKTrainingSAEConfig`.

    Saved for inference as SAELens's `topk`.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_topk"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TopKSAEConfig

    @override
    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        require_k(self.k, self.d_sae)
        if self.use_sparse_activations:
            raise ConfigError(
                "use_sparse_activations=True is not allowed: SAELens's sparse tensors do not train "
                "on every device, and this class brings sparse arithmetic of its own; use False"
            )


class SparseTopKTrainingSAE(TopKOnPairs):
    """SAELens's `TopKTrainingSAE` at the speed of `abstopk`: the k largest values, after ReLU.

    Same loss, gradients, firing statistics and saved files; see `TopKStep` for the step and
    `TrainsOnPairs` for when it is SAELens's own. Source: arXiv 2406.04093.
    """

    cfg: SparseTopKTrainingSAEConfig  # type: ignore[assignment]


RECORD = Architecture(
    name="sparse_topk",
    title="TopK, trained on the active latents only",
    formula=f"{LINEAR}z    = relu(u) on the k largest of u, else 0\n{DECODE}",
    source="arXiv 2406.04093",
    cites=(TOPK,),
    signed=False,
    when="The non-negative baseline beside abstopk, at the same speed.",
    training=(SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig),
    at_l0=lambda d_sae, l0: {"k": l0},
    timed_beside=(TopKTrainingSAE, TopKTrainingSAEConfig),
)
