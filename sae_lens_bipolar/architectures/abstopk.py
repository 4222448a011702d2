"""SAELens's AbsTopK, trained on the active latents only."""

from sae_lens.saes import abstopk_sae

from sae_lens_bipolar.architectures.training.top_k_step import SparseStep


class AbsTopKTrainingSAE(SparseStep, abstopk_sae.AbsTopKTrainingSAE):
    """Drop-in for `sae_lens.AbsTopKTrainingSAE`: the k latents of largest magnitude, signed.

    Same configuration, loss, gradients, firing statistics and saved files; see `SparseStep` for
    the step and for when it is SAELens's own. Source: arXiv 2510.00404, eq. 11.
    """

    ranking = "magnitude"
    keeps_negative = True
