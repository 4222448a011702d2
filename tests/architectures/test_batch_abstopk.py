"""BatchTopK by magnitude, flat and nested: by hand, against SAELens's own, and on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.batchtopk_sae import (
    BatchTopK,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
)
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.architectures import prox
from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopK,
    BatchAbsTopKTrainingSAE,
    BatchAbsTopKTrainingSAEConfig,
    MatryoshkaBatchAbsTopKTrainingSAE,
    MatryoshkaBatchAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUSAE
from sae_lens_bipolar.errors import ActivationError, ConfigError
from tests.architectures.family import (
    BATCH,
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

K = 3.5
WIDTHS = [4, 10, D_SAE]
NESTED: dict[str, Any] = {"matryoshka_widths": WIDTHS}


def make(**options: Any) -> BatchAbsTopKTrainingSAE:
    options = {"k": K, "dtype": "float64", **options}
    sae = BatchAbsTopKTrainingSAE(BatchAbsTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **options))
    randomise(sae)
    return sae


def make_nested(**options: Any) -> MatryoshkaBatchAbsTopKTrainingSAE:
    options = {"k": K, "dtype": "float64", "matryoshka_widths": list(WIDTHS), **options}
    cfg = MatryoshkaBatchAbsTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **options)
    sae = MatryoshkaBatchAbsTopKTrainingSAE(cfg)
    randomise(sae)
    return sae


def make_twin(signed: BatchAbsTopKTrainingSAE, **options: Any) -> BatchTopKTrainingSAE:
    options = {"k": K, "dtype": "float64", **options}
    options.setdefault("topk_threshold_lr", signed.cfg.topk_threshold_lr)
    cfg = BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=2 * D_SAE, **options)
    twin = BatchTopKTrainingSAE(cfg)
    double(signed, twin, b_enc=(signed.b_enc, -signed.b_enc))
    return twin


def test_selection_by_hand() -> None:
    u = torch.tensor([[3.0, -5.0, 0.5], [-1.0, 2.0, -0.1]])
    assert BatchAbsTopK(1.0)(u).tolist() == [[3.0, -5.0, 0.0], [0.0, 0.0, 0.0]]
    assert BatchAbsTopK(1.5)(u).tolist() == [[3.0, -5.0, 0.0], [0.0, 2.0, 0.0]]
    assert torch.equal(BatchAbsTopK(3)(u), u)
    z = torch.arange(1.0, 31.0).reshape(2, 3, 5)  # every leading dimension counts samples
    assert torch.equal(BatchAbsTopK(2)(z) != 0, z > 30 - 2 * 6)


@pytest.mark.parametrize(("k", "kept"), [(1.0, 3), (1.3, 3), (1.5, 4), (1.6, 4), (1.99, 5)])
def test_a_fraction_of_an_entry_is_left_out(k: float, kept: int) -> None:
    """Of three samples, `int(3 k)` entries; SAELens's BatchTopK keeps as many."""
    u = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert int((BatchAbsTopK(k)(u) != 0).sum()) == kept
    assert int((BatchTopK(k)(u.abs()) != 0).sum()) == kept


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=12, max_size=12, unique_by=abs), st.integers(1, 4))
def test_selection_is_abstopk_of_the_flattened_batch(values: list[float], k: int) -> None:
    u = torch.tensor(values, dtype=torch.float64)
    expected = prox.abstopk(u, 3 * k).reshape(3, 4)
    assert torch.equal(BatchAbsTopK(k)(u.reshape(3, 4)), expected)
    doubled = torch.cat([u.reshape(3, 4), -u.reshape(3, 4)], dim=-1)
    assert torch.equal(fold(BatchTopK(k)(doubled)), expected)


@pytest.mark.parametrize("rescale", [True, False])
def test_loss_by_hand(rescale: bool) -> None:
    sae = make(rescale_acts_by_decoder_norm=rescale, aux_loss_coefficient=0.3)
    dead = torch.arange(D_SAE) < 2
    x = inputs()
    output = run_step(sae, x, dead)

    norms = sae.W_dec.norm(dim=-1) if rescale else torch.ones(D_SAE, dtype=torch.float64)
    u = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    smallest = u.abs().flatten().sort(descending=True).values[int(K * BATCH) - 1]
    z = torch.where(u.abs() >= smallest, u, 0.0)
    assert int((z != 0).sum()) == int(K * BATCH)
    recons = (z / norms) @ sae.W_dec + sae.b_dec
    mse = (recons - x).pow(2).sum(-1).mean()
    # Both dead latents are taken, whatever their sign: d_in // 2 = 4 would be allowed.
    residual = x - recons
    aux = ((u / norms)[:, :2] @ sae.W_dec[:2] - residual).pow(2).sum(-1).mean()
    assert torch.equal(output.feature_acts, z)
    close(output.losses["mse_loss"], mse)
    close(output.losses["auxiliary_reconstruction_loss"], 0.3 * (2 / 4) * aux)
    close(output.loss, mse + 0.3 * (2 / 4) * aux)


@pytest.mark.parametrize("dead_latents", [0, D_IN // 2, 9, D_SAE])
@pytest.mark.parametrize("rescale", [True, False])
def test_equals_the_doubled_batchtopk(rescale: bool, dead_latents: int) -> None:
    """Exact where the dead latents number at least d_in / 2; fewer count twice in the twin."""
    signed = make(rescale_acts_by_decoder_norm=rescale)
    twin = make_twin(signed, rescale_acts_by_decoder_norm=rescale)
    dead = torch.arange(D_SAE) < dead_latents
    x = inputs()
    ours = run_step(signed, x, dead)
    theirs = run_step(twin, x, dead.repeat(2))
    assert_losses_equal(ours, theirs)
    assert torch.equal(ours.feature_acts, fold(theirs.feature_acts))
    assert_weight_gradients_are_folded(signed, twin)
    close(gradients(signed)["b_enc"], fold(gradients(twin)["b_enc"]))
    assert torch.equal(signed.topk_threshold, twin.topk_threshold)
    assert signed.topk_threshold > 0


def test_threshold_follows_the_smallest_magnitude() -> None:
    sae = make(topk_threshold_lr=0.25, k=2.0)
    acts = torch.tensor([[0.0, -0.5, 3.0], [2.0, 0.0, 0.0]])
    sae.update_topk_threshold(acts)
    assert sae.topk_threshold.item() == 0.125
    sae.update_topk_threshold(torch.tensor([[-1.5, 0.0]]))
    assert sae.topk_threshold.item() == 0.75 * 0.125 + 0.25 * 1.5
    sae.update_topk_threshold(torch.zeros(2, 3))
    assert sae.topk_threshold.item() == 0.75 * 0.125 + 0.25 * 1.5


@pytest.mark.parametrize("factory", [make, make_nested])
@pytest.mark.parametrize("rescale", [True, False])
def test_saved_inference_model_is_the_trained_one_at_its_threshold(
    factory: Any, rescale: bool, tmp_path: Path
) -> None:
    sae = factory(rescale_acts_by_decoder_norm=rescale, topk_threshold_lr=1.0)
    x = inputs()
    trained = run_step(sae, x).feature_acts
    sae.topk_threshold -= 1e-6  # the least magnitude kept must lie above the threshold
    inference = assert_round_trips(sae, tmp_path)
    assert isinstance(inference, BiJumpReLUSAE)
    latents = inference.encode(x)
    close(latents, trained)
    assert torch.equal(latents != 0, trained != 0)
    assert (latents < 0).any()
    close(inference(x), sae.decode(trained))
    assert torch.equal(inference.threshold_positive, inference.threshold_negative)
    assert inference.threshold_positive.unique().numel() == 1


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_folding(rescale: bool, apply_b_dec_to_input: bool, tmp_path: Path) -> None:
    sae = make(
        rescale_acts_by_decoder_norm=rescale,
        apply_b_dec_to_input=apply_b_dec_to_input,
        topk_threshold_lr=1.0,
    )
    run_step(sae, inputs())
    sae.save_inference_model(tmp_path)
    assert_normalisation_folds(SAE.load_from_disk(tmp_path))
    # BatchTopK's latents change scale with the decoder, so compare what is saved after the fold.
    x, factor = inputs(), 1.7
    before = SAE.load_from_disk(tmp_path)(x * factor)
    sae.fold_activation_norm_scaling_factor(factor)
    sae.save_inference_model(tmp_path)
    close(SAE.load_from_disk(tmp_path)(x) * factor, before)
    if rescale:
        assert_decoder_norms_fold(sae)
    else:
        with pytest.raises(NotImplementedError, match="rescale_acts_by_decoder_norm"):
            sae.fold_W_dec_norm()


@pytest.mark.parametrize("normalisation", FOLDED_NORMALISATIONS)
@pytest.mark.parametrize("factory", [make, make_nested])
def test_training_and_its_saved_form_reconstruct(
    factory: Any, normalisation: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = factory(k=3, dtype="float32", normalize_activations=normalisation)
    sae = type(made)(made.cfg)  # with the initial weights of SAELens, not random ones
    trainer = train(sae, steps=200)
    assert_reconstructs(sae, trainer, share=0.2)
    sae.save_inference_model(tmp_path)
    z = assert_reconstructs(SAE.load_from_disk(tmp_path), trainer, share=0.25)
    assert 1.5 < (z != 0).float().sum(-1).mean() < 6


@pytest.mark.parametrize("nested_aux", [False, True])
@pytest.mark.parametrize("rescale", [True, False])
def test_nested_loss_by_hand(rescale: bool, nested_aux: bool) -> None:
    sae = make_nested(
        rescale_acts_by_decoder_norm=rescale,
        use_matryoshka_aux_loss=nested_aux,
        aux_loss_coefficient=0.3,
    )
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[1, 3, 12]] = True  # two in the first level, none in the second, one in the third
    x = inputs()
    output = run_step(sae, x, dead)

    norms = sae.W_dec.norm(dim=-1) if rescale else torch.ones(D_SAE, dtype=torch.float64)
    u = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    z = BatchAbsTopK(K)(u) / norms
    level_out = {w: z[:, :w] @ sae.W_dec[:w] + sae.b_dec for w in WIDTHS}
    expected = {w: (level_out[w] - x).pow(2).sum(-1).mean() for w in WIDTHS}

    def aux(width: int, latents: list[int]) -> torch.Tensor:
        recons = (u / norms)[:, latents] @ sae.W_dec[latents]
        error = (recons - (x - level_out[width])).pow(2).sum(-1).mean()
        return len(latents) / (D_IN // 2) * error

    aux_loss = aux(4, [1, 3]) + aux(D_SAE, [12]) if nested_aux else aux(D_SAE, [1, 3, 12])
    close(output.losses["mse_loss"], expected[D_SAE])
    close(output.losses["inner_mse_loss_4"], expected[4])
    close(output.losses["inner_mse_loss_10"], expected[10])
    close(output.losses["auxiliary_reconstruction_loss"], 0.3 * aux_loss)
    close(output.loss, sum(expected.values()) + 0.3 * aux_loss)


def test_nested_auxiliary_loss_takes_the_largest_magnitudes_of_a_level() -> None:
    sae = make_nested(use_matryoshka_aux_loss=True, rescale_acts_by_decoder_norm=False)
    dead = torch.arange(D_SAE) >= 10  # 14 dead latents in the last level, d_in / 2 = 4 of them used
    x = inputs()
    output = run_step(sae, x, dead)
    u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    acts = prox.abstopk(u[:, 10:], 4)
    error = acts @ sae.W_dec[10:] - (x - output.sae_out)
    close(output.losses["auxiliary_reconstruction_loss"], error.pow(2).sum(-1).mean())
    assert (acts < 0).any()


@pytest.mark.parametrize("nested_aux", [False, True])
def test_one_nested_level_is_the_flat_one(nested_aux: bool) -> None:
    """With the prefix of full width alone, and its auxiliary loss, nothing is nested."""
    flat = make()
    with pytest.warns(UserWarning, match="only set one matryoshka level"):
        nested = make_nested(matryoshka_widths=[D_SAE], use_matryoshka_aux_loss=nested_aux)
    dead = torch.arange(D_SAE) % 3 == 0
    assert_losses_equal(run_step(nested, inputs(), dead), run_step(flat, inputs(), dead))
    for name, gradient in gradients(flat).items():
        close(gradients(nested)[name], gradient)


def test_nested_equals_stock_where_latents_are_positive() -> None:
    """With only positive pre-activations magnitude is value, and SAELens's class is the same."""
    signed = make_nested(use_matryoshka_aux_loss=True)
    cfg = MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        dtype="float64",
        matryoshka_widths=list(WIDTHS),
        use_matryoshka_aux_loss=True,
    )
    stock = MatryoshkaBatchTopKTrainingSAE(cfg)
    with torch.no_grad():
        signed.b_enc.add_(20)
    stock.load_state_dict(signed.state_dict())
    dead = torch.arange(D_SAE) % 2 == 0
    assert_losses_equal(run_step(signed, inputs(), dead), run_step(stock, inputs(), dead))
    for name, gradient in gradients(stock).items():
        close(gradients(signed)[name], gradient)


@pytest.mark.parametrize(
    ("d_sae", "widths"), [(256, [16, 64, 256]), (16, [1, 4, 16]), (8, [2, 8]), (3, [3])]
)
def test_widths_that_are_not_given_by_size(d_sae: int, widths: list[int]) -> None:
    cfg = MatryoshkaBatchAbsTopKTrainingSAEConfig(d_in=4, d_sae=d_sae, k=1)
    assert cfg.matryoshka_widths == widths


def test_missing_full_width_is_added_as_saelens_does() -> None:
    with pytest.warns(UserWarning, match="final matryoshka level"):
        sae = make_nested(matryoshka_widths=[4, 10])
    assert sae.cfg.matryoshka_widths == WIDTHS


@pytest.mark.parametrize(
    ("field", "value"),
    [("k", 0.5), ("k", D_SAE + 1), ("k", float("nan")), ("topk_threshold_lr", 2.0)],
)
def test_bad_configurations_are_named(field: str, value: float) -> None:
    for config in (BatchAbsTopKTrainingSAEConfig, MatryoshkaBatchAbsTopKTrainingSAEConfig):
        with pytest.raises(ConfigError, match=field):
            config(**{"d_in": D_IN, "d_sae": D_SAE, "k": K, field: value})


def test_widths_that_are_not_given_are_a_sixteenth_a_quarter_and_all() -> None:
    assert make_nested(matryoshka_widths=[]).cfg.matryoshka_widths == [
        D_SAE // 16,
        D_SAE // 4,
        D_SAE,
    ]


@pytest.mark.parametrize("widths", [[0, 4], [4, 4], [10, 4], [4, D_SAE + 1], [4.5]])
def test_bad_widths_are_named(widths: list[int]) -> None:
    with pytest.raises(ConfigError, match="matryoshka_widths"):
        make_nested(matryoshka_widths=widths)


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_nested_prefixes_refuse_norms_kept_for_one_decoding(normalisation: Any) -> None:
    with pytest.raises(ConfigError, match="normalize_activations"):
        make_nested(normalize_activations=normalisation)


@pytest.mark.parametrize("factory", [make, make_nested])
def test_bad_activations_name_hook_and_batch(factory: Any) -> None:
    sae = factory()
    sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
    x = inputs()
    x[2, 5] = float("nan")
    with pytest.raises(ActivationError, match=r"blocks\.3\.hook_mlp_out.*batch 41.*1 of 32"):
        run_step(sae, x, step=41)
