"""SAELens's AbsTopK, trained on the active latents only."""

from dataclasses import dataclass

from sae_lens.saes import abstopk_sae
from typing_extensions import override

from sae_lens_bipolar.architectures.citations import ABSTOPK
from sae_lens_bipolar.architectures.record import DECODE, LINEAR, Architecture, Sides
from sae_lens_bipolar.architectures.training.start import DataStartConfig
from sae_lens_bipolar.architectures.training.top_k_step import TopKOnPairs


@dataclass
class AbsTopKTrainingSAEConfig(DataStartConfig, abstopk_sae.AbsTopKTrainingSAEConfig):
    """SAELens's configuration of that name, and where `b_dec` starts.

    Saved for inference as SAELens's `abstopk`, like the other one. SAELens's own configuration
    trains with the same class, from zeros as its class does; but SAELens's runner of one SAE builds
    every configuration anew by its architecture's name, and so gets this one.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "abstopk"


class AbsTopKTrainingSAE(TopKOnPairs, abstopk_sae.AbsTopKTrainingSAE):
    """Drop-in for `sae_lens.AbsTopKTrainingSAE`: the k latents of largest magnitude, signed.

    Same configuration, loss, gradients, firing statistics and saved files; see `TopKStep` for
    the step and `TrainsOnPairs` for when it is SAELens's own. Source: arXiv 2510.00404, eq. 11.
    """

    ranking = "magnitude"
    keeps_negative = True


def _sides(sae: abstopk_sae.AbsTopKSAE) -> Sides:
    return Sides(bias=(sae.b_enc, -sae.b_enc))


RECORD = Architecture(
    name="abstopk",
    title="AbsTopK: the k pre-activations of largest magnitude, signs kept",
    formula=f"{LINEAR}z    = u on the k largest of |u|, else 0\n{DECODE}",
    source="arXiv 2510.00404",
    cites=(ABSTOPK,),
    signed=True,
    when="The first choice for signed latents: exactly k per token, nothing to tune, stock files.",
    training=(AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig),
    takes_over=True,
    saelens_from="6.53",
    sides=_sides,
    at_l0=lambda d_sae, l0: {"k": l0},
    timed_beside=(abstopk_sae.AbsTopKTrainingSAE, abstopk_sae.AbsTopKTrainingSAEConfig),
)
