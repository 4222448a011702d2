"""Thresholds from the first batch let exactly the wanted share fire; lambda settles L0 there."""

import math
from dataclasses import replace

import pytest
import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput

from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAE, GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.training.l0_control import L0Controller, thresholds_for_l0
from sae_lens_bipolar.errors import ConfigError

BATCH, D_IN, D_SAE = 64, 16, 128


def test_thresholds_lie_half_way_between_two_scores() -> None:
    scores = torch.tensor([[1.0, 0.0], [2.0, 10.0], [4.0, 30.0], [8.0, 20.0]])
    assert thresholds_for_l0(scores, 1.0).tolist() == [3.0, 15.0]  # two of four samples fire
    assert thresholds_for_l0(scores, 0.1).tolist() == [6.0, 25.0]  # at least one
    assert thresholds_for_l0(scores, 2.0).tolist() == [1.5, 5.0]  # all but one at most


def test_a_warm_up_is_for_a_lambda_that_nobody_steers() -> None:
    cfg = SignAwareGatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_warm_up_steps=9)
    assert (cfg.l0_target, cfg.l1_warm_up_steps) == (None, 9)
    with pytest.raises(ConfigError, match=r"l1_warm_up_steps is 9 beside l0_target=5\.0"):
        replace(cfg, l0_target=5.0)


def test_one_sample_shares_one_threshold() -> None:
    scores = torch.tensor([[5.0, 1.0, 3.0, 2.0]])
    assert thresholds_for_l0(scores, 2.0).tolist() == [2.5] * 4
    assert thresholds_for_l0(scores, 0.3).tolist() == [4.0] * 4  # at least one latent
    assert thresholds_for_l0(scores, 4.0).tolist() == [1.5] * 4  # all but one at most


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


@pytest.mark.parametrize("architecture", ["sign_aware_gated", "gated_l0"])
def test_the_first_batch_in_three_dimensions(architecture: str) -> None:
    size = {"d_in": D_IN, "d_sae": D_SAE, "threshold_init_l0": 8.0, "b_dec_init": "mean"}
    sae: TrainingSAE
    if architecture == "gated_l0":
        sae = GatedL0TrainingSAE(GatedL0TrainingSAEConfig(**size))
    else:
        sae = SignAwareGatedTrainingSAE(SignAwareGatedTrainingSAEConfig(**size))
    x = torch.randn(BATCH, 4, D_IN)
    sae.training_forward_pass(TrainStepInput(x, {"l1": 1.0}, None, 0, False))
    torch.testing.assert_close(sae.b_dec.data, x.mean(dim=(0, 1)))
    l0 = sae.encode(x).bool().float().sum(-1).mean()
    assert l0 == pytest.approx(8.0, rel=0.05)


def test_the_controller_by_hand() -> None:
    control = L0Controller(4.0, rate=0.1, damping=3.0)
    assert control.factor() == 1.0  # nothing seen yet
    control.update(torch.ones(2, 6))  # L0 6: excess 0.5
    assert control.multiplier.item() == pytest.approx(1.05)
    assert control.factor() == pytest.approx(1.05 * math.exp(3.0 * 0.5))
    control.update(torch.zeros(2, 6))  # mean 5.4: excess 0.35
    assert control.mean_l0.item() == pytest.approx(5.4)
    assert control.multiplier.item() == pytest.approx(1.05 * 1.035)
    assert control.factor() == pytest.approx(1.05 * 1.035 * math.exp(3.0 * 0.35))
    undamped = L0Controller(4.0, rate=0.1, damping=0.0)
    undamped.update(torch.ones(2, 6))
    assert undamped.factor() == undamped.multiplier.item()
    free = L0Controller(None)
    free.update(torch.ones(2, 6))
    assert free.factor() == 1.0


@pytest.mark.parametrize(("l0", "bound"), [(9, 1e4), (0, 1e-4)])
def test_lambda_stays_within_bounds_where_l0_does_not_answer(l0: int, bound: float) -> None:
    control = L0Controller(3.0)
    for _ in range(600):
        control.update(torch.ones(1, 9) * (l0 > 0))
    assert control.multiplier.item() == pytest.approx(bound)


def wind_up(steps: int, **options: float) -> SignAwareGatedTrainingSAE:
    torch.manual_seed(0)
    cfg = SignAwareGatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l0_target=4.0, **options)  # type: ignore[arg-type]
    sae = SignAwareGatedTrainingSAE(cfg)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    for step in range(steps):
        x = torch.randn(BATCH, D_IN)
        sae.training_forward_pass(TrainStepInput(x, {"l1": 1.0}, None, step, False)).loss.backward()
        adam.step()
        adam.zero_grad()
    return sae


def test_a_lambda_that_winds_up_is_warned_of_once_with_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sae = wind_up(260, threshold_init_l0=0)  # by default it starts at the target, and does not
    assert sae.l0_controller.multiplier > 100
    assert sae.l0_controller.mean_l0 > 40
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "l0_target=4: L0 is still" in warning
    assert "threshold_init_l0=4" in warning
    caplog.clear()
    sae = wind_up(260)  # the remedy, which is the default
    assert sae.l0_controller.multiplier < L0Controller.SUSPECT
    assert sae.l0_controller.mean_l0.item() == pytest.approx(4.0, rel=0.1)
    assert not caplog.records


@pytest.mark.parametrize("lr", [3e-4, 1e-3])
def test_l0_settles_and_stays(lr: float) -> None:
    """Undamped (`l0_rate=0.05, l0_damping=0`) it is off by more at either rate."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(256, 32), dim=1)
    cfg = SignAwareGatedTrainingSAEConfig(
        d_in=32, d_sae=256, l0_target=6.0, threshold_init_l0=6.0, b_dec_init="mean"
    )
    sae = SignAwareGatedTrainingSAE(cfg)
    adam = torch.optim.Adam(sae.parameters(), lr=lr)
    means = []
    for step in range(1200 if lr < 1e-3 else 600):
        active = torch.rand(256, 256) < 0.03
        x = (active * torch.randn(256, 256)) @ directions
        output = sae.training_forward_pass(TrainStepInput(x, {"l1": 1.0}, None, step, False))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        means.append(sae.l0_controller.mean_l0.item())
    assert all(abs(mean / 6.0 - 1) < 0.15 for mean in means[-100:])


@pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
def test_lambda_starts_in_proportion_to_the_activations(length: float) -> None:
    """An SAE of activations a hundred times as long takes a hundred times the lambda."""
    torch.manual_seed(0)
    cfg = SignAwareGatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l0_target=4.0)
    sae = SignAwareGatedTrainingSAE(cfg)
    x = 3 + torch.randn(BATCH, D_IN)
    x[0] = 1e4  # an attention sink
    expected = (x[1:] - x[1:].mean(0)).norm(dim=-1).median().item() / D_IN**0.5
    for step in range(2):  # the first batch has its lambda before it is looked at
        inputs = TrainStepInput(length * x, {"l1": 1.0}, None, step, False)
        used = sae.training_forward_pass(inputs).metrics["l1_coefficient"]
        assert isinstance(used, float)
        assert step == 0 or used > 0.1 * length * expected
    assert sae.l0_controller.scale.item() == pytest.approx(length * expected, rel=0.05)
    drift = sae.l0_controller.factor() / sae.l0_controller.scale.item()
    assert 0.1 < drift < 10  # the rest is the controller's


def test_without_a_target_nothing_is_steered() -> None:
    torch.manual_seed(0)
    cfg = SignAwareGatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=0.5)
    sae = SignAwareGatedTrainingSAE(cfg)
    x = 40 * torch.randn(BATCH, D_IN)
    for step in range(3):
        output = sae.training_forward_pass(TrainStepInput(x, {"l1": 0.5}, None, step, False))
        assert output.metrics["l1_coefficient"] == 0.5
    assert sae.l0_controller.threshold_scale() == 1.0
    sae.l0_controller.multiplier.fill_(3.0)  # of a checkpoint whose run had one
    sae.l0_controller.scale.fill_(2.0)
    assert sae.l0_controller.factor() == 6.0


@pytest.mark.parametrize(("l0", "scale"), [(4, 1.0), (6, 1.025), (2, 0.975), (16, 1.05)])
def test_thresholds_follow_the_excess(l0: int, scale: float) -> None:
    control = L0Controller(4.0)
    assert control.threshold_scale() == 1.0  # nothing seen yet
    control.update((torch.arange(16) < l0).expand(3, 16))
    assert control.threshold_scale() == pytest.approx(scale)
