"""The two-sided JumpReLU: by hand, against SAELens's jumprelu of twice the width, and on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import SAE, TrainCoefficientConfig, TrainingSAE

from sae_lens_bipolar.architectures import prox
from sae_lens_bipolar.architectures.bi_jumprelu import (
    BiJumpReLUSAE,
    BiJumpReLUSAEConfig,
    BiJumpReLUTrainingSAE,
    BiJumpReLUTrainingSAEConfig,
)
from sae_lens_bipolar.errors import ActivationError, ConfigError
from sae_lens_bipolar.polarity.splitting import inference_form
from tests.architectures.family import (
    D_IN,
    D_SAE,
    FOLDED_NORMALISATIONS,
    assert_decoder_norms_fold,
    assert_losses_equal,
    assert_normalisation_folds,
    assert_reconstructs,
    assert_round_trips,
    assert_weight_gradients_are_folded,
    close,
    double,
    fold,
    gradients,
    inputs,
    randomise,
    run_step,
    train,
)

LOSSES: dict[str, dict[str, Any]] = {
    "step": {"jumprelu_sparsity_loss_mode": "step"},
    "step into the input": {"jumprelu_ste_to_input": True},
    "tanh": {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_tanh_scale": 1.3},
    "tanh into the input": {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_ste_to_input": True},
    "quadratic": {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 6.0},
    "pre-act": {"pre_act_loss_coefficient": 0.2, "jumprelu_ste_to_input": True},
    "no b_dec in the input": {"apply_b_dec_to_input": False},
    "layer norm": {"normalize_activations": "layer_norm"},
}


def make(**options: Any) -> BiJumpReLUTrainingSAE:
    options = {"dtype": "float64", "jumprelu_bandwidth": 0.6, **options}
    sae = BiJumpReLUTrainingSAE(BiJumpReLUTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **options))
    randomise(sae)
    return sae


def make_inference(**options: Any) -> BiJumpReLUSAE:
    cfg = BiJumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float64", **options)
    sae = BiJumpReLUSAE(cfg)
    randomise(sae)
    return sae


def make_twin(signed: BiJumpReLUTrainingSAE, **options: Any) -> JumpReLUTrainingSAE:
    options = {"dtype": "float64", "jumprelu_bandwidth": 0.6, **options}
    twin = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=D_IN, d_sae=2 * D_SAE, **options))
    double(
        signed,
        twin,
        b_enc=(signed.b_enc, -signed.b_enc),
        threshold=(signed.threshold_positive, signed.threshold_negative),
    )
    return twin


def test_latents_by_hand() -> None:
    sae = BiJumpReLUSAE(BiJumpReLUSAEConfig(d_in=2, d_sae=2))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        sae.b_dec.copy_(torch.tensor([0.0, 1.0]))
        sae.b_enc.copy_(torch.tensor([0.5, 0.0]))
        sae.threshold_positive.copy_(torch.tensor([1.0, 2.0]))
        sae.threshold_negative.copy_(torch.tensor([2.0, 0.0]))
    # u = x - (0, 1) + (0.5, 0): a latent at its threshold does not fire.
    x = torch.tensor([[0.5, 3.0], [1.0, 4.0], [-2.5, 0.5], [-3.0, 1.0]])
    assert sae.encode(x).tolist() == [[0.0, 0.0], [1.5, 3.0], [0.0, -0.5], [-2.5, 0.0]]
    assert sae(x)[1].tolist() == [3.0, 10.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=D_SAE, max_size=D_SAE), st.floats(0.25, 2))
def test_equal_thresholds_are_the_hard_threshold(values: list[float], theta: float) -> None:
    """Away from |u| = theta, which the proximal operator keeps and a JumpReLU drops."""
    u = torch.tensor(values, dtype=torch.float64)
    u[(u.abs() - theta).abs() < 1e-6] = 0.0
    cfg = BiJumpReLUSAEConfig(d_in=D_SAE, d_sae=D_SAE, dtype="float64")
    sae = BiJumpReLUSAE(cfg)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D_SAE))
        sae.threshold_positive.fill_(theta)
        sae.threshold_negative.fill_(theta)
    assert torch.equal(sae.encode(u), prox.hard_threshold(u, theta))


@pytest.mark.parametrize("dead_latents", ["none", "some", "all"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_are_those_of_the_doubled_jumprelu(loss: str, dead_latents: str) -> None:
    signed = make(**LOSSES[loss])
    twin = make_twin(signed, **LOSSES[loss])
    dead = torch.arange(D_SAE) < {"none": 0, "some": 7, "all": D_SAE}[dead_latents]
    x = inputs()
    ours = run_step(signed, x, dead, l0=0.7)
    theirs = run_step(twin, x, dead.repeat(2), l0=0.7)
    assert_losses_equal(ours, theirs)
    assert torch.equal(
        ours.feature_acts, theirs.feature_acts[:, :D_SAE] - theirs.feature_acts[:, D_SAE:]
    )
    assert_weight_gradients_are_folded(signed, twin)
    mine, other = gradients(signed), gradients(twin)
    close(mine["b_enc"], fold(other["b_enc"]))
    # Thresholds are float32 in both, and so are their gradients.
    close(mine["threshold_positive"], other["threshold"][:D_SAE], tolerance=1e-5)
    close(mine["threshold_negative"], other["threshold"][D_SAE:], tolerance=1e-5)
    for name in ("threshold_positive", "threshold_negative"):
        assert mine[name].abs().max() > 1e-3


def test_thresholds_are_projected_to_zero_and_stay_trainable() -> None:
    sae = make()
    with torch.no_grad():
        sae.threshold_positive.fill_(-0.2)
        sae.threshold_negative.fill_(-0.2)
    output = run_step(sae, inputs(), l0=1.0)
    assert sae.threshold_positive.min() == sae.threshold_negative.min() == 0
    assert torch.equal(output.feature_acts, output.hidden_pre)  # no dead zone: every latent fires
    assert sae.threshold_positive.grad is not None
    assert sae.threshold_positive.grad.abs().max() > 0


def test_thresholds_below_zero_are_projected_wherever_they_matter(tmp_path: Path) -> None:
    """The optimizer's last step may leave them there, and no training step follows it."""

    def below_zero() -> BiJumpReLUTrainingSAE:
        sae = make()
        with torch.no_grad():
            sae.threshold_positive.fill_(-0.2)
            sae.threshold_negative[::2].fill_(-0.1)
        return sae

    x = inputs()
    z, u = below_zero().encode_with_hidden_pre(x)
    expected = torch.where((u > 0) | (-u > below_zero().threshold_negative.clamp(min=0)), u, 0.0)
    assert torch.equal(z, expected)  # once each, although both sides reach over 0
    below_zero().save_model(tmp_path / "training")
    below_zero().save_inference_model(tmp_path / "inference")
    training = TrainingSAE.load_from_disk(tmp_path / "training")
    inference = SAE.load_from_disk(tmp_path / "inference")
    for loaded in (training, inference, inference_form(below_zero())):
        positive, negative = map(loaded.get_parameter, ("threshold_positive", "threshold_negative"))
        assert positive.max() == positive.min() == 0
        assert negative.min() == 0 < negative.max()
        close(loaded.encode(x), expected)


def test_thresholds_stay_float32() -> None:
    sae = make(dtype="bfloat16")
    assert sae.W_enc.dtype == torch.bfloat16
    sae.to(dtype=torch.bfloat16)
    assert sae.threshold_positive.dtype == sae.threshold_negative.dtype == torch.float32
    assert sae.encode(inputs()).dtype == torch.bfloat16


def test_initial_threshold_and_coefficients() -> None:
    cfg = BiJumpReLUTrainingSAEConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        jumprelu_init_threshold=0.25,
        l0_coefficient=3.0,
        l0_warm_up_steps=9,
    )
    sae = BiJumpReLUTrainingSAE(cfg)
    assert sae.threshold_positive.tolist() == sae.threshold_negative.tolist() == [0.25] * D_SAE
    assert sae.get_coefficients() == {"l0": TrainCoefficientConfig(3.0, 9)}


def test_round_trips(tmp_path: Path) -> None:
    sae = make(jumprelu_sparsity_loss_mode="quadratic", target_l0=5.0, l0_coefficient=0.5)
    inference = assert_round_trips(sae, tmp_path)
    assert isinstance(inference, BiJumpReLUSAE)
    x = inputs()
    close(inference.encode(x), sae.encode(x))
    close(inference(x), sae(x))


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("factory", [make, make_inference])
def test_folding(factory: Any, apply_b_dec_to_input: bool) -> None:
    sae = factory(apply_b_dec_to_input=apply_b_dec_to_input)
    assert (sae.encode(inputs()) < 0).any()
    assert_normalisation_folds(sae)
    assert_decoder_norms_fold(sae)


@pytest.mark.parametrize("normalisation", FOLDED_NORMALISATIONS)
def test_training_reaches_a_sparse_reconstruction(normalisation: Any) -> None:
    cfg = BiJumpReLUTrainingSAEConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        l0_coefficient=0.05,
        jumprelu_init_threshold=0.05,
        jumprelu_bandwidth=0.5,
        normalize_activations=normalisation,
        pre_act_loss_coefficient=1e-3,
    )
    torch.manual_seed(0)
    sae = BiJumpReLUTrainingSAE(cfg)
    z = assert_reconstructs(sae, train(sae, steps=300), share=0.2)
    assert (z != 0).float().sum(-1).mean() < D_SAE / 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("jumprelu_sparsity_loss_mode", "stepp"),
        ("jumprelu_init_threshold", -0.1),
        ("jumprelu_bandwidth", 0.0),
        ("l0_coefficient", float("nan")),
        ("pre_act_loss_coefficient", -1.0),
    ],
)
def test_bad_configurations_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        BiJumpReLUTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **{field: value})


@pytest.mark.parametrize("target", [None, 0.0, D_SAE + 1.0])
def test_quadratic_needs_a_target_within_the_width(target: float | None) -> None:
    with pytest.raises(ConfigError, match="target_l0"):
        BiJumpReLUTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, jumprelu_sparsity_loss_mode="quadratic", target_l0=target
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_name_hook_and_batch(bad: float) -> None:
    sae = make()
    sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
    x = inputs()
    x[2, 5] = bad
    with pytest.raises(ActivationError, match=r"blocks\.3\.hook_mlp_out.*batch 41.*1 of 32"):
        run_step(sae, x, step=41, l0=1.0)
