"""Thresholds from the first batch let exactly the wanted share fire, and none is on the edge."""

import pytest
import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput

from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAE, GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.l0_control import thresholds_for_l0
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)

BATCH, D_IN, D_SAE = 64, 16, 128


def test_thresholds_lie_half_way_between_two_scores() -> None:
    scores = torch.tensor([[1.0, 0.0], [2.0, 10.0], [4.0, 30.0], [8.0, 20.0]])
    assert thresholds_for_l0(scores, 1.0).tolist() == [3.0, 15.0]  # two of four samples fire
    assert thresholds_for_l0(scores, 0.1).tolist() == [6.0, 25.0]  # at least one
    assert thresholds_for_l0(scores, 2.0).tolist() == [1.5, 5.0]  # all but one at most


@pytest.mark.parametrize("l0", [2.0, 8.0, 40.0])
@pytest.mark.parametrize("architecture", ["sign_aware_gated", "gated_l0"])
def test_the_first_batch_has_the_l0_asked_for(architecture: str, l0: float) -> None:
    """In float32 too, where a threshold on a score would be crossed or not by rounding."""
    torch.manual_seed(0)
    size = {"d_in": D_IN, "d_sae": D_SAE, "threshold_init_l0": l0}
    sae: TrainingSAE
    if architecture == "gated_l0":
        sae = GatedL0TrainingSAE(GatedL0TrainingSAEConfig(**size))
    else:
        sae = SignAwareGatedTrainingSAE(SignAwareGatedTrainingSAEConfig(**size))
    x = torch.randn(BATCH, D_IN)
    output = sae.training_forward_pass(TrainStepInput(x, {"l1": 1.0}, None, 0, False))
    assert output.feature_acts.bool().float().sum(-1).mean() == l0
