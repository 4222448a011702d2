from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.gated_sae import (
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
)
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.polarity import antipodal
from sae_lens_bipolar.polarity.antipodal import antipodal_pairs
from sae_lens_bipolar.polarity.merging import merge
from sae_lens_bipolar.polarity.splitting import split
from tests.architectures.family import randomise
from tests.signed_saes import D_IN, D_SAE, SIGNED, signed_sae

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


@torch.no_grad()
def check_same(merged: SAE[Any], sae: SAE[Any], x: torch.Tensor, tolerance: float = 1e-9) -> None:
    z = sae.encode(x)
    assert (z != 0).any()
    torch.testing.assert_close(merged.encode(x), z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(merged(x), sae(x), rtol=tolerance, atol=10 * tolerance)


# --- the inverse of the split ---


@pytest.mark.parametrize("name", SIGNED)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
def test_merging_a_split_gives_the_signed_sae_back(name, dtype, tolerance, normalization):
    sae = signed_sae(
        name,
        dtype=dtype,
        normalize_activations=normalization,
        apply_b_dec_to_input=False,
        metadata=SAEMetadata(model_name="gpt2"),
    )
    x = draw(64, D_IN).to(sae.dtype)
    result = merge(split(sae), x=x)
    check_same(result.sae, sae, x, tolerance)
    assert result.pairs.tolist() == [[i, D_SAE + i] for i in range(D_SAE)]
    assert torch.equal(result.members, result.pairs)
    torch.testing.assert_close(result.decoder_cosine, -torch.ones(D_SAE), check_dtype=False)
    torch.testing.assert_close(result.encoder_cosine, -torch.ones(D_SAE), check_dtype=False)
    assert result.mse_before is not None
    assert result.mse_after == pytest.approx(result.mse_before, rel=1e-5)
    assert result.sae.cfg.architecture() == {
        "abstopk": "bi_topk",
        "unrolled_abstopk": "bi_topk",
    }.get(sae.cfg.architecture(), sae.cfg.architecture())
    assert result.sae.dtype == sae.dtype
    assert result.sae.cfg.normalize_activations == normalization
    assert result.sae.cfg.metadata.model_name == "gpt2"
    assert result.sae.cfg.metadata.merged_pairs == D_SAE
    assert "polarity_split_of" not in result.sae.cfg.metadata


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SIGNED)), st.integers(0, 2**31), st.integers(2, 8))
def test_round_trip_on_random_weights(name, seed, d_in):
    sae = signed_sae(name, seed, d_in=d_in, dtype="float64")
    x = draw(32, d_in, seed=seed)
    # Between exact opposites only: in few dimensions others come near.
    check_same(merge(split(sae), cosine_threshold=1.0).sae, sae, x, 1e-8)


def test_a_shuffled_split_comes_back_up_to_order_and_sign():
    sae = signed_sae("bi_topk", dtype="float64")
    twin: Any = split(sae)
    order = torch.randperm(2 * D_SAE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        twin.W_enc.copy_(twin.W_enc[:, order])
        twin.W_dec.copy_(twin.W_dec[order])
        twin.b_enc.copy_(twin.b_enc[order])
    result = merge(twin, cosine_threshold=1.0)
    positive, negative = order[result.members].unbind(1)  # indices into the split
    assert torch.equal((positive - negative).abs(), torch.full((D_SAE,), D_SAE))
    sign = torch.where(positive < D_SAE, 1.0, -1.0)
    x = draw(64, D_IN)
    with torch.no_grad():
        z = sae.encode(x)[:, positive % D_SAE] * sign
        torch.testing.assert_close(result.sae.encode(x), z)
        torch.testing.assert_close(result.sae(x), sae(x))


# --- SAEs made by hand ---


def by_hand(sae: SAE[Any], **values: list[Any]) -> SAE[Any]:
    with torch.no_grad():
        for name, value in values.items():
            getattr(sae, name).copy_(torch.tensor(value, **DOUBLE))
    return sae


def test_topk_by_hand():
    """Latents 0 and 2 oppose, 1 is alone, 3 opposes in the decoder only."""
    sae = by_hand(
        TopKSAE(TopKSAEConfig(d_in=2, d_sae=4, k=2, dtype="float64")),
        W_enc=[[2.0, 0.0, -2.0, 0.0], [0.0, 1.0, 0.0, 1.0]],
        b_enc=[0.5, 0.25, -0.5, 0.0],
        W_dec=[[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, -1.0]],
        b_dec=[0.0, 0.0],
    )
    x = torch.tensor([[1.0, 1.0], [-1.0, 2.0], [0.1, -3.0]], **DOUBLE)
    result = merge(sae, x=x)
    assert result.members.tolist() == [[0, 2], [1, -1], [3, -1]]
    assert result.pairs.tolist() == [[0, 2]]
    assert result.decoder_cosine.tolist() == [-1.0]
    assert result.encoder_cosine.tolist() == [-1.0]
    expected = torch.tensor([[2.5, 1.25, 0], [0, 2.25, 2.0], [0.7, 0, 0]], **DOUBLE)
    with torch.no_grad():
        torch.testing.assert_close(result.sae.encode(x), expected)
        torch.testing.assert_close(result.sae(x), sae(x))
        assert result.mse_before == pytest.approx((sae(x) - x).pow(2).mean().item())
    assert result.mse_after == pytest.approx(result.mse_before)
    negative = torch.tensor([[-2.0, -0.5]], **DOUBLE)
    assert result.sae.encode(negative).tolist() == [[-3.5, 0.0, 0.0]]


def test_jumprelu_pair_with_decoder_norms_that_differ():
    """Latent 1 is written 4 times as large and read 4 times as small: the same pair."""
    sae = by_hand(
        JumpReLUSAE(JumpReLUSAEConfig(d_in=2, d_sae=2, dtype="float64")),
        W_enc=[[4.0, -1.0], [0.0, 0.0]],
        b_enc=[-1.0, 0.25],
        threshold=[2.0, 0.5],
        W_dec=[[1.0, 0.0], [-4.0, 0.0]],
        b_dec=[0.0, 0.0],
    )
    x = torch.tensor([[0.7, 0], [0.8, 0], [-0.2, 0], [-0.3, 0]], **DOUBLE)
    result = merge(sae)
    assert result.sae.cfg.architecture() == "bi_jumprelu"
    expected = torch.tensor([[0.0], [1.1], [0], [-1.1]], **DOUBLE)
    with torch.no_grad():
        torch.testing.assert_close(result.sae.encode(x), expected)
        torch.testing.assert_close(result.sae(x), sae(x))
    assert result.mse_before is result.mse_after is None


def pair_with_biases(b: list[float], W_enc: list[float]) -> SAE[Any]:
    return by_hand(
        JumpReLUSAE(JumpReLUSAEConfig(d_in=1, d_sae=2, dtype="float64")),
        W_enc=[W_enc],
        b_enc=b,
        threshold=[0.5, 0.25],
        W_dec=[[1.0], [-1.0]],
    )


def test_gains_and_biases_of_either_side_make_it_gated():
    sae = pair_with_biases([-1.0, -2.0], [1.0, -4.0])
    x = torch.linspace(-3, 3, 101, **DOUBLE)[:, None]
    result = merge(sae)
    assert result.sae.cfg.architecture() == "sign_aware_gated"
    with torch.no_grad():
        acts = sae.encode(x)
        torch.testing.assert_close(result.sae.encode(x), acts[:, :1] - acts[:, 1:])
        torch.testing.assert_close(result.sae(x), sae(x))


@pytest.mark.parametrize("apart", [1 - 1e-6, 1 - 9e-6, 1 + 1e-6])
def test_gains_count_as_one_within_a_hundred_thousandth_of_the_first(apart):
    sae = pair_with_biases([-1.0, 1.0], [1.0, 1e-5 * apart - 1.0])
    cast(Any, sae).threshold.data.fill_(2.0)  # silent at u = 0 on either side
    target = "bi_jumprelu" if apart < 1 else "sign_aware_gated"
    assert merge(sae).sae.cfg.architecture() == target


def test_one_bias_instead_of_two_shifts_values_by_half_their_sum():
    sae = pair_with_biases([-1.0, -2.0], [1.0, -1.0])
    x = torch.linspace(-3, 3, 101, **DOUBLE)[:, None]
    result = merge(sae, target="bi_jumprelu", x=x)
    with torch.no_grad():
        acts = sae.encode(x)
        z = result.sae.encode(x)
    signed = acts[:, :1] - acts[:, 1:]
    assert torch.equal(z.sign(), signed.sign())
    torch.testing.assert_close(z, signed + 1.5 * signed.sign())
    assert result.mse_after != pytest.approx(result.mse_before)


def test_a_pair_that_fires_on_both_sides_at_once_becomes_one_line():
    """No signed latent has two values at once; neither target is exact, so the simpler is taken."""
    sae = pair_with_biases([1.0, 0.9], [1.0, -1.0])
    x = torch.linspace(-3, 3, 101, **DOUBLE)[:, None]
    result = merge(sae, x=x)
    assert result.sae.cfg.architecture() == "bi_jumprelu"
    with torch.no_grad():
        torch.testing.assert_close(result.sae.encode(x), x + 0.05)


def test_a_gate_that_opens_below_0_leaves_the_decision_to_the_magnitude():
    """Its threshold counts as 0 before the sides' biases are shared; by hand."""
    sae = by_hand(
        GatedSAE(GatedSAEConfig(d_in=1, d_sae=2, dtype="float64")),
        W_enc=[[2.0, -2.0]],
        r_mag=[0.0, 0.0],
        b_mag=[-1.0, -3.0],
        b_gate=[5.0, 5.0],  # open wherever 2x > -5: everywhere that counts
        W_dec=[[1.0], [-1.0]],
        b_dec=[0.0],
    )
    # relu(2x - 1) and relu(-2x - 3): u = 2x + 1, silent from -2 to 2 about u = 0.
    result = merge(sae, target="bi_jumprelu")
    merged: Any = result.sae
    assert merged.b_enc.tolist() == [1.0]
    assert merged.threshold_positive.tolist() == [2.0]
    assert merged.threshold_negative.tolist() == [2.0]
    gated: Any = merge(sae, target="sign_aware_gated").sae
    x = torch.linspace(-3, 3, 101, **DOUBLE)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(gated(x), sae(x))
        signed = sae.encode(x)[:, :1] - sae.encode(x)[:, 1:]
        torch.testing.assert_close(merged.encode(x), signed + 2 * signed.sign())


def test_a_side_that_fires_before_0_keeps_a_finite_threshold():
    sae = pair_with_biases([1.0, -2.0], [1.0, -1.0])  # fires where u > -0.5: from u = 0 on, gated
    gated: Any = merge(sae, target="sign_aware_gated").sae
    assert torch.isfinite(gated.log_threshold).all()
    x = torch.linspace(0.01, 3, 50, **DOUBLE)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(gated.encode(x), sae.encode(x)[:, :1])


# --- what has no pairs stays as it was ---


def non_negative(name: str, **cfg: Any) -> SAE[Any]:
    sizes: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float64", **cfg}
    return randomise(
        {
            "topk": lambda: TopKSAE(TopKSAEConfig(k=4, **sizes)),
            "topk rescaled": lambda: TopKSAE(
                TopKSAEConfig(k=4, rescale_acts_by_decoder_norm=True, **sizes)
            ),
            "standard": lambda: StandardSAE(StandardSAEConfig(**sizes)),
            "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**sizes)),
            "gated": lambda: GatedSAE(GatedSAEConfig(**sizes)),
        }[name]()
    )


NON_NEGATIVE = ("topk", "topk rescaled", "standard", "jumprelu", "gated")


@pytest.mark.parametrize("name", NON_NEGATIVE)
def test_without_pairs_nothing_changes(name):
    sae = non_negative(name)
    x = draw(64, D_IN)
    result = merge(sae, cosine_threshold=1.0, x=x)
    assert len(result.pairs) == 0
    assert result.members.tolist() == [[i, -1] for i in range(D_SAE)]
    check_same(result.sae, sae, x)
    assert result.mse_after == pytest.approx(result.mse_before)


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated"])
def test_without_pairs_nothing_changes_gated(name):
    sae: Any = non_negative(name)
    bias = sae.b_mag if name == "gated" else sae.b_enc
    bias.data.abs_().neg_()  # so that every latent is silent at u = 0
    result = merge(sae, cosine_threshold=1.0, target="sign_aware_gated")
    merged: Any = result.sae
    assert merged.cfg.architecture() == "sign_aware_gated"
    assert not merged.b_mag[1].any(), "0 on a side that is empty"
    assert torch.isinf(merged.log_threshold[1]).all()
    check_same(merged, sae, draw(64, D_IN))


@pytest.mark.parametrize("name", NON_NEGATIVE)
def test_planted_pairs_are_found_and_folded(name):
    """Half the latents made opposite to the other half up to noise; loss grows with the noise."""
    losses = []
    for noise in (0.0, 0.01, 0.05):  # of entries of size 1/2
        sae: Any = non_negative(name)
        half = D_SAE // 2
        with torch.no_grad():
            sae.W_dec[half:] = -sae.W_dec[:half]
            sae.W_enc[:, half:] = -sae.W_enc[:, :half]
            sae.W_dec[half:] += noise * draw(half, D_IN, seed=2)
            sae.W_enc[:, half:] += noise * draw(D_IN, half, seed=3)
            if name == "gated":
                sae.r_mag[half:] = sae.r_mag[:half]
            for parameter in ("b_enc", "b_mag", "b_gate"):
                if getattr(sae, parameter, None) is not None:
                    getattr(sae, parameter).abs_().neg_()
        x = draw(256, D_IN)
        result = merge(sae, x=x)
        assert {(i, i + half) for i in range(half)} == set(map(tuple, result.pairs.tolist()))
        assert result.sae.cfg.d_sae == half
        with torch.no_grad():
            losses.append((result.sae(x) - sae(x)).pow(2).mean().item())
            after = (result.sae(x) - x).pow(2).mean().item()
        assert result.mse_after == pytest.approx(after)
    assert losses[0] < 1e-18
    assert losses[0] < losses[1] < losses[2]


def test_a_training_sae_is_merged_in_its_inference_form():
    cfg = GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float64")
    sae = randomise(GatedTrainingSAE(cfg))
    x = draw(32, D_IN)
    check_same(merge(sae, cosine_threshold=1.0).sae, sae, x)


def test_hook_z():
    sae = signed_sae(
        "abstopk",
        dtype="float64",
        reshape_activations="hook_z",
        metadata=SAEMetadata(hook_name="blocks.0.attn.hook_z"),
    )
    x = draw(8, 3, D_IN // 3)
    result = merge(split(sae), x=x)
    check_same(result.sae, sae, x)
    assert result.mse_before == pytest.approx((sae(x) - x).pow(2).mean().item())


# --- the search ---


def unit(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees, **DOUBLE).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_greedy_takes_the_most_opposite_first_and_each_latent_once():
    directions = unit(0, 170, 181, 350)
    found = antipodal_pairs(directions, directions, 0.9, 0.9)
    # 0-2 and 1-3 are 179 and 180 degrees apart; 0-1 is 170, 2-3 is 169.
    assert found.pairs.tolist() == [[0, 2], [1, 3]]
    expected = torch.tensor([179.0, 180.0], **DOUBLE).deg2rad().cos()
    torch.testing.assert_close(found.decoder_cosine, expected)
    torch.testing.assert_close(found.encoder_cosine, expected)


def test_both_directions_must_oppose():
    agree, oppose = unit(0, 10), unit(0, 175)
    assert len(antipodal_pairs(agree, oppose, 0.9, 0.9).pairs) == 0
    assert len(antipodal_pairs(oppose, agree, 0.9, 0.9).pairs) == 0
    assert len(antipodal_pairs(oppose, oppose, 0.9, 0.9).pairs) == 1
    assert len(antipodal_pairs(oppose, oppose, 0.999, 0.9).pairs) == 0
    assert len(antipodal_pairs(unit(0, 140), oppose, 0.9).pairs) == 0
    assert len(antipodal_pairs(unit(0, 140), oppose, 0.9, 0.7).pairs) == 1
    assert len(antipodal_pairs(oppose, unit(0, 140), 0.9, 0.7).pairs) == 0


def test_a_zero_row_pairs_with_nothing():
    directions = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert antipodal_pairs(directions, directions, 0.1, 0.1).pairs.tolist() == [[1, 3]]


def test_scores_that_differ_by_less_than_their_rounding_tie(monkeypatch):
    """To the smallest indices; rounded in float32, the second pair would count as more opposite."""
    first, second = torch.tensor([-0.9371116757392883, -0.9371117353439331])
    cosines = torch.stack([first, second])
    pairs = torch.tensor([[0, 1], [0, 2]])
    monkeypatch.setattr(antipodal, "_candidates", lambda *_: [(pairs, cosines, cosines)])
    directions = torch.eye(3)
    assert antipodal_pairs(directions, directions).pairs.tolist() == [[0, 1]]


def test_no_latent_is_a_pair_with_itself():
    zero = torch.zeros(1, 2)  # whose cosine with itself is 0
    assert antipodal_pairs(zero, zero, 1e-7).pairs.shape == (0, 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 4), st.floats(0.05, 1.0))
def test_the_matching_is_what_greedy_over_all_pairs_gives(seed, d_sae, d_in, threshold):
    encoder, decoder = draw(d_sae, d_in, seed=seed), draw(d_sae, d_in, seed=seed + 1)
    unit_encoder = encoder / encoder.norm(dim=1, keepdim=True)
    unit_decoder = decoder / decoder.norm(dim=1, keepdim=True)
    encoder_cosine, decoder_cosine = unit_encoder @ unit_encoder.T, unit_decoder @ unit_decoder.T
    candidates = sorted(
        (round((encoder_cosine[i, j] + decoder_cosine[i, j]).item() / 1e-6), i, j)
        for i in range(d_sae)
        for j in range(i + 1, d_sae)
        if max(encoder_cosine[i, j], decoder_cosine[i, j]) <= -threshold + 1e-6
    )
    used: set[int] = set()
    expected = []
    for _, i, j in candidates:
        if not used & {i, j}:
            used |= {i, j}
            expected.append([i, j])
    found = antipodal_pairs(encoder, decoder, threshold, threshold)
    assert found.pairs.tolist() == sorted(expected)


@pytest.mark.parametrize("elements", [1, 7, 100, 1000])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch, elements):
    encoder = draw(50, 3)
    decoder = encoder + 0.1 * draw(50, 3, seed=2)
    whole = antipodal_pairs(encoder, decoder, 0.8, 0.8)
    assert len(whole.pairs) > 5
    monkeypatch.setattr(antipodal, "_CHUNK_ELEMENTS", elements)
    chunked = antipodal_pairs(encoder, decoder, 0.8, 0.8)
    assert torch.equal(whole.pairs, chunked.pairs)
    torch.testing.assert_close(whole.decoder_cosine, chunked.decoder_cosine)
    torch.testing.assert_close(whole.encoder_cosine, chunked.encoder_cosine)


# --- errors ---


@pytest.mark.parametrize("value", [0.0, -0.9, 1.1, float("nan")])
def test_thresholds_out_of_range(value):
    sae = non_negative("standard")
    with pytest.raises(ConfigError, match=f"^cosine_threshold is {value}"):
        merge(sae, cosine_threshold=value)
    with pytest.raises(ConfigError, match=f"encoder_cosine_threshold is {value}"):
        merge(sae, encoder_cosine_threshold=value)


@pytest.mark.parametrize("name", SIGNED)
def test_an_sae_of_two_sides_is_refused(name):
    why = "one affine encoder" if "one-sided" in name else "signed already"
    with pytest.raises(ConfigError, match=why):
        merge(signed_sae(name))


def test_what_has_no_affine_encoder_is_refused():
    sae = MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=D_IN, d_sae=D_SAE))
    with pytest.raises(ConfigError, match=r"one affine encoder.*matching_pursuit"):
        merge(sae)


def test_targets():
    with pytest.raises(ConfigError, match="only become bi_topk"):
        merge(non_negative("topk"), target="bi_jumprelu")
    with pytest.raises(ConfigError, match=r"'gated'.*sign_aware_gated"):
        merge(non_negative("standard"), target="gated")  # type: ignore[arg-type]
