"""Bi-TopK: by hand, containing TopK and AbsTopK, against SAELens's TopK of twice the width."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

from sae_lens_bipolar.architectures.bi_topk import (
    BiTopKSAE,
    BiTopKSAEConfig,
    BiTopKTrainingSAE,
    BiTopKTrainingSAEConfig,
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

K = 5
DEAD = {"none": 0, "few": 3, "many": 9, "all": D_SAE}


def make(**options: Any) -> BiTopKTrainingSAE:
    options = {"k": K, "dtype": "float64", **options}
    sae = BiTopKTrainingSAE(BiTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **options))
    randomise(sae)
    return sae


def make_inference(**options: Any) -> BiTopKSAE:
    sae = BiTopKSAE(BiTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, dtype="float64", **options))
    randomise(sae)
    return sae


def set_biases(sae: Any, positive: torch.Tensor | float, negative: torch.Tensor | float) -> None:
    with torch.no_grad():
        sae.b_positive.copy_(torch.as_tensor(positive).expand(D_SAE))
        sae.b_negative.copy_(torch.as_tensor(negative).expand(D_SAE))


def dead_mask(name: str) -> torch.Tensor:
    return torch.arange(D_SAE) < DEAD[name]


def test_latents_by_hand() -> None:
    sae = BiTopKSAE(BiTopKSAEConfig(d_in=3, d_sae=3, k=2))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
        sae.b_positive.copy_(torch.tensor([0.0, 0.0, 1.0]))
        sae.b_negative.copy_(torch.tensor([-1.0, 2.0, 1.5]))
    # pre+ = x + b+, pre- = -x + b-: the two largest of the six are kept, clipped at 0.
    x = torch.tensor([[3.0, 1.0, -5.0], [-3.0, -3.0, 0.0], [-9.0, -9.0, 0.25], [-2.0, 0.5, -0.6]])
    expected = [
        [3.0, 0.0, -6.5],  # pre+ (3, 1, -4), pre- (-4, 1, 6.5)
        [-2.0, -5.0, 0.0],  # pre+ (-3, -3, 1), pre- (2, 5, 1.5)
        [-8.0, -11.0, 0.0],  # pre- (8, 11, 1.25)
        [0.0, -1.5, -2.1],  # pre- (1, 1.5, 2.1)
    ]
    close(sae.encode(x), torch.tensor(expected), 1e-6)


def test_both_sides_of_a_latent_kept_at_once() -> None:
    sae = BiTopKSAE(BiTopKSAEConfig(d_in=2, d_sae=2, k=2))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.b_positive.copy_(torch.tensor([3.0, 0.0]))
        sae.b_negative.copy_(torch.tensor([2.0, 0.0]))
    # pre+ = (3.5, 1), pre- = (1.5, -1); then (2.5, 1) and (2.5, -1): the difference is 0.
    assert sae.encode(torch.tensor([[0.5, 1.0], [-0.5, 1.0]])).tolist() == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dead", ["none", "many", "all"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_loss_and_gradients_are_those_of_the_doubled_topk(
    rescale: bool, apply_b_dec_to_input: bool, dead: str
) -> None:
    options: dict[str, Any] = {
        "rescale_acts_by_decoder_norm": rescale,
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "aux_loss_coefficient": 0.4,
    }
    signed = make(**options)
    with torch.no_grad():  # often keeps both sides of one latent
        signed.b_positive[0] = signed.b_negative[0] = 8.0
    cfg = TopKTrainingSAEConfig(d_in=D_IN, d_sae=2 * D_SAE, k=K, dtype="float64", **options)
    twin = TopKTrainingSAE(cfg)
    double(signed, twin, b_enc=(signed.b_positive, signed.b_negative))
    x, mask = inputs(), dead_mask(dead)
    ours = run_step(signed, x, mask)
    theirs = run_step(twin, x, mask.repeat(2))
    assert_losses_equal(ours, theirs)
    close(ours.feature_acts, fold(theirs.feature_acts))
    assert_weight_gradients_are_folded(signed, twin)
    mine, other = gradients(signed), gradients(twin)
    close(torch.cat([mine["b_positive"], mine["b_negative"]]), other["b_enc"])
    positive, negative = (theirs.feature_acts != 0).chunk(2, dim=-1)
    assert (positive & negative).any()  # the case where one latent stands for two of the split's
    assert torch.equal(ours.feature_acts != 0, positive | negative)


@pytest.mark.parametrize("dead", ["none", "many", "all"])
@pytest.mark.parametrize("rescale", [True, False])
def test_on_heads_of_hook_z_it_is_the_doubled_topk(rescale: bool, dead: str) -> None:
    options: dict[str, Any] = {
        "rescale_acts_by_decoder_norm": rescale,
        "reshape_activations": "hook_z",
    }
    signed = make(**options)
    cfg = TopKTrainingSAEConfig(d_in=D_IN, d_sae=2 * D_SAE, k=K, dtype="float64", **options)
    twin = TopKTrainingSAE(cfg)
    double(signed, twin, b_enc=(signed.b_positive, signed.b_negative))
    for sae in (signed, twin):
        sae.turn_on_forward_pass_hook_z_reshaping()
    x, mask = inputs().view(-1, 2, D_IN // 2), dead_mask(dead)
    ours, theirs = run_step(signed, x, mask), run_step(twin, x, mask.repeat(2))
    assert ours.sae_out.shape == x.shape
    assert_losses_equal(ours, theirs)
    assert_weight_gradients_are_folded(signed, twin)


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("rescale", [True, False])
def test_contains_abstopk(rescale: bool, dead: str) -> None:
    """b- = -b+: loss, auxiliary loss and the gradients of every weight are SAELens's abstopk's."""
    signed = make(rescale_acts_by_decoder_norm=rescale)
    set_biases(signed, signed.b_positive.detach(), -signed.b_positive.detach())
    cfg = AbsTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, dtype="float64", rescale_acts_by_decoder_norm=rescale
    )
    stock = AbsTopKTrainingSAE(cfg)
    stock.load_state_dict({**common(signed), "b_enc": signed.b_positive})
    x, mask = inputs(), dead_mask(dead)
    ours, theirs = run_step(signed, x, mask), run_step(stock, x, mask)
    assert_losses_equal(ours, theirs)
    close(ours.feature_acts, theirs.feature_acts)
    mine, other = gradients(signed), gradients(stock)
    for name in ("W_enc", "W_dec", "b_dec"):
        close(mine[name], other[name])
    close(mine["b_positive"] - mine["b_negative"], other["b_enc"])


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("rescale", [True, False])
def test_contains_topk(rescale: bool, dead: str) -> None:
    """b- far below: loss, auxiliary loss and every gradient are SAELens's topk's."""
    signed = make(rescale_acts_by_decoder_norm=rescale)
    set_biases(signed, signed.b_positive.detach(), -1e6)
    cfg = TopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, dtype="float64", rescale_acts_by_decoder_norm=rescale
    )
    stock = TopKTrainingSAE(cfg)
    stock.load_state_dict({**common(signed), "b_enc": signed.b_positive})
    x, mask = inputs(), dead_mask(dead)
    ours, theirs = run_step(signed, x, mask), run_step(stock, x, mask)
    assert_losses_equal(ours, theirs)
    assert torch.equal(ours.feature_acts, theirs.feature_acts)
    mine, other = gradients(signed), gradients(stock)
    for name in ("W_enc", "W_dec", "b_dec"):
        close(mine[name], other[name])
    close(mine["b_positive"], other["b_enc"])
    assert not mine["b_negative"].any()


def common(sae: BiTopKTrainingSAE) -> dict[str, torch.Tensor]:
    return {name: t for name, t in sae.state_dict().items() if name not in BIASES}


BIASES = ("b_positive", "b_negative")


def test_auxiliary_loss_of_few_dead_latents_by_hand() -> None:
    sae = make(rescale_acts_by_decoder_norm=False, aux_loss_coefficient=0.4)
    x = inputs()
    output = run_step(sae, x, dead_mask("few"))
    u = (x - sae.b_dec) @ sae.W_enc
    sides = torch.cat([(u + sae.b_positive)[:, :3], (sae.b_negative - u)[:, :3]], dim=-1)
    floor = sides.sort(dim=-1, descending=True).values[:, 2:3]
    acts = fold(torch.where(sides >= floor, sides, 0.0))
    error = (acts @ sae.W_dec[:3] - (x - output.sae_out)).pow(2).sum(-1).mean()
    close(output.losses["auxiliary_reconstruction_loss"], 0.4 * (3 / 4) * error)


def test_the_dial() -> None:
    """A lower initial b- leaves fewer negative latents, and none in the end."""
    shares = []
    for value in (0.0, -1.0, -100.0):
        sae = BiTopKTrainingSAE(
            BiTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, initial_b_negative=value)
        )
        assert sae.b_negative.tolist() == [value] * D_SAE
        assert not sae.b_positive.any()
        with torch.no_grad():
            sae.W_enc.copy_(make().W_enc)
        z = sae.encode(inputs(dtype=torch.float32))
        shares.append((z < 0).sum() / (z != 0).sum())
    assert shares[0] > 0.3
    assert shares[0] > shares[1] > shares[2] == 0


@pytest.mark.parametrize("rescale", [True, False])
def test_round_trips(rescale: bool, tmp_path: Path) -> None:
    sae = make(rescale_acts_by_decoder_norm=rescale, initial_b_negative=-0.5)
    inference = assert_round_trips(sae, tmp_path)
    assert isinstance(inference, BiTopKSAE)
    assert sae.get_coefficients() == {}
    x = inputs()
    close(inference.encode(x), sae.encode(x))
    close(inference(x), sae(x))
    if rescale:
        close(inference.W_dec.norm(dim=-1), torch.ones(D_SAE, dtype=torch.float64))


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


def test_layer_norm_trains_while_nothing_is_dead_and_then_says_why_not() -> None:
    sae = make(normalize_activations="layer_norm")
    run_step(sae, inputs(), dead_mask("none"))
    with pytest.raises(ConfigError, match=r"layer_norm.*3 dead latents"):
        run_step(sae, inputs(), dead_mask("few"))


@pytest.mark.parametrize("normalisation", FOLDED_NORMALISATIONS)
def test_training_reconstructs(normalisation: Any) -> None:
    cfg = BiTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=3, normalize_activations=normalisation, initial_b_negative=-0.1
    )
    torch.manual_seed(0)
    sae = BiTopKTrainingSAE(cfg)
    z = assert_reconstructs(sae, train(sae, steps=200), share=0.2)
    assert (z != 0).sum(-1).max() <= 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", 0),
        ("k", D_SAE + 1),
        ("k", 2.0),
        ("initial_b_negative", float("-inf")),
        ("initial_b_negative", "low"),
        ("aux_loss_coefficient", -1.0),
    ],
)
def test_bad_configurations_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        make(**{field: value})


def test_bad_inference_configuration_is_named() -> None:
    with pytest.raises(ConfigError, match="k="):
        BiTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=D_SAE + 1)


def test_bad_activations_name_hook_and_batch() -> None:
    sae = make()
    sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
    x = inputs()
    x[2, 5] = float("inf")
    with pytest.raises(ActivationError, match=r"blocks\.3\.hook_mlp_out.*batch 41.*1 of 32"):
        run_step(sae, x, step=41)
