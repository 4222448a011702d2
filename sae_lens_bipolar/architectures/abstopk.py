"""SAELens's AbsTopK, trained on the active latents only."""

from sae_lens.saes import abstopk_sae

from sae_lens_bipolar.architectures.citations import ABSTOPK
from sae_lens_bipolar.architectures.record import DECODE, LINEAR, Architecture, Sides
from sae_lens_bipolar.architectures.training.top_k_step import TopKOnPairs


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
    training=(AbsTopKTrainingSAE, abstopk_sae.AbsTopKTrainingSAEConfig),
    takes_over=True,
    saelens_from="6.53",
    sides=_sides,
    at_l0=lambda d_sae, l0: {"k": l0},
    timed_beside=(abstopk_sae.AbsTopKTrainingSAE, abstopk_sae.AbsTopKTrainingSAEConfig),
)
