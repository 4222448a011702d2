"""Placeholder until the fused implementation lands: SAELens's own training class."""

from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE as StockAbsTopKTrainingSAE


class AbsTopKTrainingSAE(StockAbsTopKTrainingSAE):
    """SAELens's AbsTopK training SAE."""
