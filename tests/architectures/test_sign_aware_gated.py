"""Bi-Jump-ReLU and the SA-GSAE loss against hand computation and an independent implementation."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file
from torch.testing import assert_close

import sae_lens_bipolar  # noqa: F401  (registers the architectures)
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.training.gate import Polarities, bi_jump_relu, gate_code
from sae_lens_bipolar.architectures.training.l0_control import L0_DAMPING, L0_RATE
from sae_lens_bipolar.errors import ActivationError, ConfigError
from tests.architectures import family

D_IN, D_SAE, BATCH = 5, 11, 7


def make_config(**options: Any) -> SignAwareGatedTrainingSAEConfig:
    return SignAwareGatedTrainingSAEConfig(
        **{"d_in": D_IN, "d_sae": D_SAE, "dtype": "float64", "l1_coefficient": 0.3, **options}
    )


def make_sae(**options: Any) -> SignAwareGatedTrainingSAE:
    """An SAE with every parameter away from its initial value and both polarities different."""
    torch.manual_seed(0)
    sae = SignAwareGatedTrainingSAE(make_config(**options)).double()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.5)
        sae.log_threshold.copy_(torch.randn(sae.log_threshold.shape) * 0.3 - 1.5)
    return sae


step_input = partial(family.step_input, l1=0.3)


def batch() -> torch.Tensor:
    return torch.randn(BATCH, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_losses(sae: SignAwareGatedTrainingSAE, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The module's equations once more, token by token and latent by latent."""
    cfg = sae.cfg
    theta, gain, bias = sae.log_threshold.double().exp(), sae.log_gain.exp(), sae.b_mag
    zero = x.new_zeros(())
    mse, l1, aux = zero, zero, zero
    for token in x:
        centred = token - sae.b_dec if cfg.apply_b_dec_to_input else token
        xhat, xhat_gate = sae.b_dec, sae.b_dec.detach()
        for i in range(cfg.d_sae):
            u = centred @ sae.W_enc[:, i]
            z, pi = zero, zero
            if u > theta[0, i]:
                z = (gain[0, i] * u + bias[0, i]).clamp(min=0)
                pi = u - theta[0, i]
            elif cfg.two_sided_gate and u < -theta[-1, i]:
                z = -(-gain[-1, i] * u + bias[-1, i]).clamp(min=0)
                pi = u + theta[-1, i]
            row = sae.W_dec[i]
            xhat = xhat + z * row
            xhat_gate = xhat_gate + pi * (row.detach() if cfg.detach_aux_decoder else row)
            weight = row.detach().norm() if cfg.detach_l1_decoder else row.norm()
            l1 = l1 + cfg.l1_coefficient * pi.abs() * weight
        if not cfg.detach_aux_decoder:
            xhat_gate = xhat_gate - sae.b_dec.detach() + sae.b_dec
        mse = mse + (token - xhat).pow(2).sum()
        aux = aux + cfg.aux_coefficient * (token - xhat_gate).pow(2).sum()
    return {
        name: total / len(x)
        for name, total in (
            ("mse_loss", mse),
            ("l1_loss", l1),
            ("auxiliary_reconstruction_loss", aux),
        )
    }


def gradients(sae: SignAwareGatedTrainingSAE, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*sae.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for n, p, g in zip(names, parameters, found, strict=True)
    }


def test_bi_jump_relu_and_gate_code_on_hand_computed_values() -> None:
    def t(*values: float) -> torch.Tensor:
        return torch.tensor(values)

    #            below -theta-, in the dead zone, its edges, above theta+, magnitude cut by its relu
    u = t(-3.0, -1.0, 0.0, 2.0, 3.0, 5.0)
    p = Polarities(
        threshold_positive=t(2.0, 2.0, 2.0, 2.0, 2.0, 2.0),
        threshold_negative=t(1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        gain_positive=t(2.0, 2.0, 2.0, 2.0, 2.0, 2.0),
        gain_negative=t(0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
        bias_positive=t(1.0, 1.0, 1.0, 1.0, 1.0, -11.0),
        bias_negative=t(0.25, 0.25, 0.25, 0.25, 0.25, 0.25),
    )
    # -(0.5 * 3 + 0.25) = -1.75;  u = -1 and u = 2 lie on the edges and stay silent;  2 * 3 + 1 = 7
    assert_close(bi_jump_relu(u, p), t(-1.75, 0.0, 0.0, 0.0, 7.0, 0.0))
    assert_close(bi_jump_relu(u, p, two_sided=False), t(0.0, 0.0, 0.0, 0.0, 7.0, 0.0))
    assert_close(gate_code(u, p), t(-2.0, 0.0, 0.0, 0.0, 1.0, 3.0))
    assert_close(gate_code(u, p, two_sided=False), t(0.0, 0.0, 0.0, 0.0, 1.0, 3.0))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"symmetry": "gain"},
    {"symmetry": "none"},
    {"two_sided_gate": False},
    {"aux_coefficient": 0.0},
    {"aux_coefficient": 2.5, "detach_aux_decoder": False},
    {"detach_l1_decoder": False},
    {"apply_b_dec_to_input": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_and_all_gradients_equal_a_plain_implementation(options: dict[str, Any]) -> None:
    sae = make_sae(**options)
    x = batch()
    output = sae.training_forward_pass(step_input(x))
    expected = plain_losses(sae, x)
    if not sae.cfg.aux_coefficient:
        expected.pop("auxiliary_reconstruction_loss")
    assert output.losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert_close(output.losses[name], loss)
    assert_close(output.loss, sum(expected.values()))
    found, wanted = gradients(sae, output.loss), gradients(sae, sum(expected.values()))  # type: ignore[arg-type]
    for name in wanted:
        assert_close(found[name], wanted[name], msg=lambda m, n=name: f"{n}: {m}")
    assert (output.feature_acts > 0).any()
    assert (output.feature_acts < 0).any() == sae.cfg.two_sided_gate


def test_auxiliary_term_leaves_the_decoder_alone_unless_told_otherwise() -> None:
    for detach in (True, False):
        sae = make_sae(detach_aux_decoder=detach, apply_b_dec_to_input=False)
        losses = sae.training_forward_pass(step_input(batch())).losses
        found = gradients(sae, losses["auxiliary_reconstruction_loss"])
        assert (found["W_dec"].abs().sum() == 0) == detach
        assert (found["b_dec"].abs().sum() == 0) == detach
        assert found["W_enc"].abs().sum() > 0
        assert found["log_threshold"].abs().sum() > 0


def test_sparsity_term_leaves_the_decoder_alone_unless_told_otherwise() -> None:
    for detach in (True, False):
        sae = make_sae(detach_l1_decoder=detach, apply_b_dec_to_input=False)
        losses = sae.training_forward_pass(step_input(batch())).losses
        assert (gradients(sae, losses["l1_loss"])["W_dec"].abs().sum() == 0) == detach


def test_magnitude_path_passes_no_gradient_to_the_thresholds() -> None:
    sae = make_sae()
    losses = sae.training_forward_pass(step_input(batch())).losses
    assert gradients(sae, losses["mse_loss"])["log_threshold"].abs().sum() == 0


@pytest.mark.parametrize(
    ("symmetry", "rows"), [("full", (1, 1, 1)), ("gain", (2, 1, 2)), ("none", (2, 2, 2))]
)
def test_symmetry_ties_what_it_says(symmetry: str, rows: tuple[int, int, int]) -> None:
    sae = make_sae(symmetry=symmetry)
    assert tuple(len(p) for p in (sae.log_threshold, sae.log_gain, sae.b_mag)) == rows
    x = batch()
    mirrored = -(x - sae.b_dec) + sae.b_dec  # u changes sign
    same = torch.allclose(sae.encode(mirrored), -sae.encode(x))
    assert same == (symmetry == "full")


def test_options_change_what_they_say_and_nothing_else() -> None:
    x = batch()
    base = make_sae()

    def losses(**options: Any) -> dict[str, torch.Tensor]:
        sae = SignAwareGatedTrainingSAE(make_config(**options)).double()
        sae.load_state_dict(base.state_dict())
        return sae.training_forward_pass(step_input(x, l1=sae.cfg.l1_coefficient)).losses

    before = losses()
    assert_close(losses(l1_coefficient=0.6)["l1_loss"], 2 * before["l1_loss"])
    doubled = losses(aux_coefficient=2.0)
    aux = "auxiliary_reconstruction_loss"
    assert_close(doubled[aux], 2 * before[aux])
    assert_close(doubled["mse_loss"], before["mse_loss"])
    without = losses(aux_coefficient=0.0)
    assert without.keys() == {"mse_loss", "l1_loss"}
    assert_close(losses(detach_aux_decoder=False), before)
    assert_close(losses(detach_l1_decoder=False), before)
    one_sided = SignAwareGatedTrainingSAE(make_config(two_sided_gate=False)).double()
    one_sided.load_state_dict(base.state_dict())
    assert_close(one_sided.encode(x), base.encode(x).clamp(min=0))


def test_threshold_init_is_the_thresholds() -> None:
    sae = SignAwareGatedTrainingSAE(make_config(threshold_init=0.25))
    assert_close(sae.log_threshold.exp(), torch.full((1, D_SAE), 0.25).double())


def test_starts_from_the_first_batch_only() -> None:
    x = torch.randn(400, D_IN, dtype=torch.float64) + 3.0
    sae = SignAwareGatedTrainingSAE(make_config(threshold_init_l0=2.0, b_dec_init="mean"))
    z = sae.training_forward_pass(step_input(x)).feature_acts
    assert_close(sae.b_dec.data, x.mean(0))
    fired = (z != 0).sum(0)
    assert (fired == round(400 * 2.0 / D_SAE)).all()
    assert_close(sae.initial_log_threshold, sae.log_threshold.data)
    before = sae.log_threshold.detach().clone()
    sae.training_forward_pass(step_input(x * 5))
    assert_close(sae.log_threshold.data, before)


def test_a_one_sided_gate_starts_from_the_positive_scores_alone() -> None:
    x = torch.randn(400, D_IN, dtype=torch.float64) + 1.0
    sae = SignAwareGatedTrainingSAE(make_config(threshold_init_l0=1.1, two_sided_gate=False))
    u = sae.process_sae_in(x) @ sae.W_enc
    z = sae.training_forward_pass(step_input(x)).feature_acts
    positive = u.topk(41, dim=0).values[-2:].mean(dim=0) > 1e-6
    assert positive.any()
    assert ((z > 0).sum(0)[positive] == round(400 * 1.1 / D_SAE)).all()


def test_thresholds_have_a_smallest() -> None:
    """A one-sided quantile may be 0 or less, where there is no logarithm."""
    sae = SignAwareGatedTrainingSAE(make_config())
    sae.log_threshold.requires_grad_(False)
    sae.set_thresholds(torch.tensor([-1.0, 0.0, 1e-9, 2e-6, 0.5, *[1.0] * (D_SAE - 5)]).double())
    expected = torch.tensor([[1e-6, 1e-6, 1e-6, 2e-6, 0.5]]).double()
    assert_close(sae.log_threshold.exp()[:, :5], expected)
    assert torch.equal(sae.initial_log_threshold, sae.log_threshold)


@pytest.mark.parametrize("symmetry", ["full", "none"])
def test_folding_norms_folds_the_initial_thresholds_too(symmetry: str) -> None:
    """So that a latent that dies afterwards gets thresholds in the new units."""
    sae = make_sae(symmetry=symmetry)
    initial, norms = sae.initial_log_threshold.exp(), sae.W_dec.norm(dim=-1).detach()
    x, before = batch(), sae.encode(batch())
    sae.fold_W_dec_norm()
    assert_close(sae.encode(x), before * norms)
    assert_close(sae.initial_log_threshold.exp(), initial * norms)
    sae.training_forward_pass(step_input(x, dead=torch.ones(D_SAE, dtype=torch.bool)))
    assert_close(sae.log_threshold.exp(), (initial * norms).expand_as(sae.log_threshold))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_thresholds_are_saved_for_inference_in_the_dtype_of_the_sae(
    dtype: str, tmp_path: Path
) -> None:
    sae = SignAwareGatedTrainingSAE(make_config(dtype=dtype, threshold_init=0.3))
    sae.save_inference_model(tmp_path)
    saved = load_file(tmp_path / "sae_weights.safetensors")
    assert {str(t.dtype) for t in saved.values()} == {f"torch.{dtype}"}
    expected = torch.full((1, D_SAE), 0.3).double()
    assert_close(saved["log_threshold"].double().exp(), expected, rtol=1e-2, atol=0)


def test_thresholds_in_float64_stay_so_and_narrower_ones_are_float32() -> None:
    sae = SignAwareGatedTrainingSAE(make_config())
    for to, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        sae.to(to)
        assert (sae.log_threshold.dtype, sae.initial_log_threshold.dtype) == (kept, kept)
        assert sae.W_enc.dtype == to


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale", "none"])
def test_the_mean_is_that_of_normalised_inputs(normalisation: str) -> None:
    """b_dec is subtracted from those, and added before the normalisation is undone."""
    x = 3.0 * batch() + 2.0
    sae = SignAwareGatedTrainingSAE(
        make_config(b_dec_init="mean", normalize_activations=normalisation)
    )
    sae.training_forward_pass(step_input(x))
    centred = x - x.mean(-1, keepdim=True)
    expected = {
        "layer_norm": centred / (centred.std(-1, keepdim=True) + 1e-5),
        "constant_norm_rescale": x * D_IN**0.5 / x.norm(dim=-1, keepdim=True),
        "none": x,
    }[normalisation]
    assert_close(sae.b_dec.data, expected.mean(0))


def test_dead_latents_get_their_initial_thresholds_back() -> None:
    for reset in (True, False):
        sae = SignAwareGatedTrainingSAE(
            make_config(reset_dead_thresholds=reset, threshold_init=0.1)
        )
        with torch.no_grad():
            sae.log_threshold.add_(2.0)
        moved = sae.log_threshold.detach().clone()
        dead = torch.zeros(D_SAE, dtype=torch.bool)
        dead[[1, 4]] = True
        sae.training_forward_pass(step_input(batch(), dead=dead))
        expected = torch.where(dead, sae.initial_log_threshold, moved) if reset else moved
        assert_close(sae.log_threshold.data, expected)


def test_controller_drives_lambda_towards_the_target() -> None:
    x = torch.randn(64, D_IN, dtype=torch.float64)
    low, high = (make_sae(l0_target=target, threshold_init_l0=0) for target in (0.5, 10.0))
    used = []
    for sae in (low, high):
        outputs = [sae.training_forward_pass(step_input(x)) for _ in range(3)]
        l0 = (outputs[-1].feature_acts != 0).sum(-1).double().mean().item()
        target = sae.cfg.l0_target
        assert target is not None
        excess = max(-1.0, min(1.0, (l0 - target) / target))
        # the batch stays the same, so the running mean is its L0
        assert sae.l0_controller.multiplier.item() == pytest.approx((1 + L0_RATE * excess) ** 3)
        used.append(outputs[-1].metrics["l1_coefficient"])
        scale = (x - sae.b_dec).norm(dim=-1).median().item() / D_IN**0.5
        assert sae.l0_controller.scale.item() == pytest.approx(scale)
        used[-1] /= scale
    assert used[0] == pytest.approx(0.3 * (1 + L0_RATE) ** 2 * math.exp(L0_DAMPING))
    assert used[1] < 0.3


def test_normalization_is_undone_before_the_auxiliary_error() -> None:
    """With layer_norm the auxiliary error is measured where the main one is."""
    x = 4.0 * batch() + 1.0
    sae = make_sae(normalize_activations="layer_norm")
    losses = sae.training_forward_pass(step_input(x)).losses
    mean, std = x.mean(-1, keepdim=True), (x - x.mean(-1, keepdim=True)).std(-1, keepdim=True)
    u = ((x - mean) / (std + 1e-5) - sae.b_dec) @ sae.W_enc
    pi = gate_code(u, sae.polarities())
    expected = ((pi @ sae.W_dec + sae.b_dec) * std + mean - x).pow(2).sum(-1).mean()
    assert_close(losses["auxiliary_reconstruction_loss"], expected)


@pytest.mark.parametrize("symmetry", ["full", "gain", "none"])
def test_saving_loading_and_folding_keep_the_outputs(symmetry: str, tmp_path: Path) -> None:
    sae = make_sae(symmetry=symmetry, threshold_init_l0=None).float()
    sae.cfg.dtype, sae.dtype = "float32", torch.float32
    x = batch().float()
    sae.save_inference_model(tmp_path / "inference")
    sae.save_model(tmp_path / "training")
    loaded = SAE.load_from_disk(tmp_path / "inference")
    assert type(loaded).__name__ == "SignAwareGatedSAE"
    assert set(loaded.state_dict()) == {
        "W_enc",
        "W_dec",
        "b_dec",
        "log_threshold",
        "log_gain",
        "b_mag",
    }
    assert_close(loaded.encode(x), sae.encode(x))
    assert_close(loaded(x), sae(x))
    again = TrainingSAE.load_from_disk(tmp_path / "training")
    assert_close(again.state_dict(), sae.state_dict())
    fine_tuned = SignAwareGatedTrainingSAE(replace(sae.cfg, threshold_init_l0=1.0))
    fine_tuned.load_weights_from_checkpoint(tmp_path / "inference")
    fine_tuned.training_forward_pass(step_input(x))
    assert_close(fine_tuned.log_threshold.data, sae.log_threshold.data)  # not initialised again
    norms = loaded.W_dec.norm(dim=-1)
    before = loaded.encode(x)
    loaded.fold_W_dec_norm()
    assert_close(loaded.encode(x), before * norms)
    assert_close(loaded(x), sae(x))
    assert_close(loaded.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_thresholds_keep_float32_in_a_bfloat16_sae() -> None:
    sae = SignAwareGatedTrainingSAE(make_config(dtype="bfloat16"))
    sae.to(torch.bfloat16)
    assert sae.log_threshold.dtype == torch.float32
    assert sae.l0_controller.multiplier.dtype == torch.float32
    assert sae.W_enc.dtype == torch.bfloat16
    output = sae.training_forward_pass(step_input(batch().bfloat16()))
    assert output.feature_acts.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"symmetry": "both"}, "symmetry='both'"),
        ({"symmetry": "none", "two_sided_gate": False}, "two_sided_gate=False"),
        ({"threshold_init": 0.0}, "threshold_init=0.0"),
        ({"threshold_init": float("nan")}, "threshold_init=nan"),
        ({"l1_coefficient": -1.0}, "l1_coefficient=-1.0"),
        ({"aux_coefficient": float("inf")}, "aux_coefficient=inf"),
        ({"l0_target": 0.0}, "l0_target=0.0"),
        ({"l0_target": 12.0}, r"l0_target=12.0 .*at most d_sae \(11\)"),
        ({"threshold_init_l0": -3.0}, "threshold_init_l0=-3.0"),
        ({"b_dec_init": "median"}, "b_dec_init='median'"),
        ({"l0_target": 3.0, "l1_warm_up_steps": 5}, "l1_warm_up_steps is 5"),
        ({"l0_target": 3.0, "l1_coefficient": 0.0}, "l1_coefficient is 0"),
        (
            {"normalize_activations": "covariance_whitening", "apply_b_dec_to_input": False},
            "apply_b_dec_to_input=True",
        ),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(**options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_hook_and_step(bad: float) -> None:
    sae = make_sae()
    sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
    x = batch()
    x[2, 3] = bad
    with pytest.raises(ActivationError, match=r"blocks\.3\.hook_mlp_out.*\b0\b"):
        sae.training_forward_pass(step_input(x))
