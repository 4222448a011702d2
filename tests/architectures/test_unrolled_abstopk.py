"""Unrolled AbsTopK: one step is SAELens's abstopk, more steps are iterative hard thresholding."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.abstopk_sae import (
    AbsTopKSAE,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.architectures import prox
from sae_lens_bipolar.architectures.unrolled_abstopk import (
    UnrolledAbsTopKSAE,
    UnrolledAbsTopKSAEConfig,
    UnrolledAbsTopKTrainingSAE,
    UnrolledAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.errors import ActivationError, ConfigError
from tests.architectures.family import (
    D_IN,
    D_SAE,
    FOLDED_NORMALISATIONS,
    assert_decoder_norms_fold,
    assert_losses_equal,
    assert_normalisation_folds,
    assert_reconstructs,
    assert_round_trips,
    close,
    gradients,
    inputs,
    randomise,
    run_step,
    train,
)

K = 4


def make(**options: Any) -> UnrolledAbsTopKTrainingSAE:
    options = {"k": K, "n_steps": 3, "dtype": "float64", **options}
    cfg = UnrolledAbsTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **options)
    sae = UnrolledAbsTopKTrainingSAE(cfg)
    randomise(sae)
    return sae


def make_inference(**options: Any) -> UnrolledAbsTopKSAE:
    options = {"k": K, "n_steps": 3, "dtype": "float64", **options}
    sae = UnrolledAbsTopKSAE(UnrolledAbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, **options))
    randomise(sae)
    return sae


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_steps_by_hand(apply_b_dec_to_input: bool, rescale: bool) -> None:
    """Eq. 4 with eq. 6's learned W and b_e, written with the proximal operator of `prox`."""
    sae = make(apply_b_dec_to_input=apply_b_dec_to_input, rescale_acts_by_decoder_norm=rescale)
    x = inputs()
    W, D, b_e = sae.W_enc, sae.W_dec, sae.b_enc
    if rescale:  # the same steps, for the dictionary with unit rows
        norms = D.norm(dim=-1)
        W, D, b_e = W * norms, D / norms[:, None], b_e * norms
    target = x - sae.b_dec if apply_b_dec_to_input else x
    z = prox.abstopk(target @ W + b_e, K)
    for mu in sae.log_step_size.exp():
        z = prox.abstopk(z + mu * ((target - z @ D) @ W + b_e), K)
    close(sae.encode(x), z)
    close(sae(x), z @ D + sae.b_dec)
    assert sae.log_step_size.shape == (2,)


@pytest.mark.parametrize("dead_latents", [0, 3, D_SAE])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_one_step_is_abstopk(rescale: bool, apply_b_dec_to_input: bool, dead_latents: int) -> None:
    options: dict[str, Any] = {
        "rescale_acts_by_decoder_norm": rescale,
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "aux_loss_coefficient": 0.4,
    }
    ours = make(n_steps=1, **options)
    cfg = AbsTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, dtype="float64", **options)
    stock = AbsTopKTrainingSAE(cfg)
    stock.load_state_dict(ours.state_dict())  # the same parameters under the same names
    dead = torch.arange(D_SAE) < dead_latents
    mine, theirs = run_step(ours, inputs(), dead), run_step(stock, inputs(), dead)
    assert_losses_equal(mine, theirs)
    assert torch.equal(mine.feature_acts, theirs.feature_acts)
    assert torch.equal(mine.hidden_pre, theirs.hidden_pre)
    assert gradients(ours).keys() == gradients(stock).keys()
    for name, gradient in gradients(stock).items():
        assert torch.equal(gradients(ours)[name], gradient), name


def test_one_step_files_are_abstopk_files_under_another_name(tmp_path: Path) -> None:
    inference = assert_round_trips(make(n_steps=1), tmp_path)
    config = tmp_path / "inference" / "cfg.json"
    config.write_text(config.read_text().replace('"unrolled_abstopk"', '"abstopk"'))
    stock = SAE.load_from_disk(tmp_path / "inference")
    assert type(stock) is AbsTopKSAE
    assert torch.equal(stock.encode(inputs()), inference.encode(inputs()))


def hard_thresholding(n_steps: int, k: int, share: float, seed: int) -> UnrolledAbsTopKSAE:
    """W = D, no b_e, and mu = share / |D|^2: iterative hard thresholding with the decoder."""
    sae = make_inference(n_steps=n_steps, k=k, rescale_acts_by_decoder_norm=False)
    randomise(sae, seed)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.zero_()
        if n_steps > 1:
            step = share / torch.linalg.matrix_norm(sae.W_dec, 2) ** 2
            sae.log_step_size.fill_(step.log())
    return sae


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.integers(1, D_SAE))
def test_steps_never_increase_the_sparse_coding_objective(seed: int, share: float, k: int) -> None:
    """1/2 |x - b - D z|^2 falls or stays with every step, on every single token."""
    x = inputs(seed=seed)
    objectives = []
    for n_steps in (1, 2, 3, 6):
        sae = hard_thresholding(n_steps, k, share, seed)
        assert (sae.encode(x) != 0).sum(dim=-1).max() <= k
        objectives.append(0.5 * (x - sae(x)).pow(2).sum(dim=-1))
    for before, after in itertools.pairwise(objectives):
        assert (after <= before + 1e-9).all()


def test_many_steps_get_far_below_one() -> None:
    x = inputs()
    one, many = (x - hard_thresholding(1, K, 1.0, 0)(x), x - hard_thresholding(30, K, 1.0, 0)(x))
    assert many.pow(2).sum() < 0.2 * one.pow(2).sum()


def test_every_parameter_gets_the_gradient_of_finite_differences() -> None:
    sae = make(n_steps=3)
    x = inputs(batch=4)
    run_step(sae, x)
    for name, gradient in gradients(sae).items():
        parameter = sae.get_parameter(name)
        generator = torch.Generator().manual_seed(5)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction = (direction / direction.norm()).to(parameter.dtype)
        # log_step_size is float32, which a step much smaller than this would not survive.
        eps = 1e-3 if parameter.dtype == torch.float32 else 1e-6
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * eps * direction)
            losses.append(run_step(sae, x).loss.item())
            with torch.no_grad():
                parameter.sub_(sign * eps * direction)
        slope = (losses[0] - losses[1]) / (2 * eps)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-3, abs=1e-5), name


def test_hooks_see_the_last_step_once() -> None:
    sae = make()
    seen: dict[str, list[torch.Tensor]] = {"pre": [], "post": []}
    sae.hook_sae_acts_pre.add_hook(lambda tensor, hook: seen["pre"].append(tensor))
    sae.hook_sae_acts_post.add_hook(lambda tensor, hook: seen["post"].append(tensor))
    z = sae.encode(inputs())
    assert [len(calls) for calls in seen.values()] == [1, 1]
    close(prox.abstopk(seen["pre"][0] * sae.W_dec.norm(dim=-1), K), z)
    assert torch.equal(seen["post"][0], z)


@pytest.mark.parametrize("rescale", [True, False])
def test_round_trips(rescale: bool, tmp_path: Path) -> None:
    sae = make(rescale_acts_by_decoder_norm=rescale, initial_step_size=0.3)
    inference = assert_round_trips(sae, tmp_path)
    assert isinstance(inference, UnrolledAbsTopKSAE)
    assert sae.get_coefficients() == {}
    x = inputs()
    close(inference.encode(x), sae.encode(x))
    close(inference(x), sae(x))


def test_step_sizes_start_where_told_stay_float32_and_are_logged() -> None:
    cfg = UnrolledAbsTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, n_steps=4, initial_step_size=0.25, dtype="bfloat16"
    )
    sae = UnrolledAbsTopKTrainingSAE(cfg).to(dtype=torch.bfloat16)
    assert sae.log_step_size.dtype == torch.float32
    assert sae.log_step_size.tolist() == pytest.approx([math.log(0.25)] * 3)
    assert sae.log_histograms()["weights/step_sizes"].tolist() == pytest.approx([0.25] * 3)
    assert sae.encode(inputs()).dtype == torch.bfloat16


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("factory", [make, make_inference])
def test_folding(factory: Any, rescale: bool, apply_b_dec_to_input: bool) -> None:
    sae = factory(rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=apply_b_dec_to_input)
    if rescale:
        assert_decoder_norms_fold(sae)
    else:
        with pytest.raises(NotImplementedError, match="rescale_acts_by_decoder_norm"):
            sae.fold_W_dec_norm()
    assert_normalisation_folds(sae)


@pytest.mark.parametrize("normalisation", FOLDED_NORMALISATIONS)
def test_training_reconstructs(normalisation: Any) -> None:
    cfg = UnrolledAbsTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=3, n_steps=3, normalize_activations=normalisation
    )
    torch.manual_seed(0)
    sae = UnrolledAbsTopKTrainingSAE(cfg)
    before = sae.log_step_size.detach().clone()
    z = assert_reconstructs(sae, train(sae, steps=200), share=0.2)
    assert (z != 0).sum(-1).max() <= 3
    assert (sae.log_step_size - before).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", 0),
        ("k", D_SAE + 1),
        ("n_steps", 0),
        ("n_steps", 1.5),
        ("initial_step_size", 0.0),
        ("initial_step_size", float("inf")),
    ],
)
def test_bad_configurations_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        make(**{field: value})


@pytest.mark.parametrize("field", ["k", "n_steps"])
def test_bad_inference_configurations_are_named(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make_inference(**{field: 0})


def test_bad_activations_name_hook_and_batch() -> None:
    sae = make()
    sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
    x = inputs()
    x[2, 5] = float("nan")
    with pytest.raises(ActivationError, match=r"blocks\.3\.hook_mlp_out.*batch 41.*1 of 32"):
        run_step(sae, x, step=41)


def test_two_steps_unless_more_are_asked_for() -> None:
    for config in (UnrolledAbsTopKSAEConfig, UnrolledAbsTopKTrainingSAEConfig):
        assert config(d_in=4, d_sae=8, k=2).n_steps == 2
    assert UnrolledAbsTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2).initial_step_size == 1.0
