"""Units: a latent's own range, raw z, and the size of the change; what they refuse and warn of."""

import warnings
from typing import Any

import pytest
import torch
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.polarity.counting import Census, census
from sae_lens_bipolar.steering import (
    AblateDirection,
    AddVector,
    EditLatents,
    ExtrapolationWarning,
    Scale,
)
from tests.steering.models import HOOK
from tests.steering.saes import D_SAE, WIDTH, make_sae

X = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def known_census(positive: float, negative: float) -> Census:
    """A census in which every latent reached so far on each side."""
    zeros = torch.zeros(D_SAE, dtype=torch.float64)
    fired = [(zeros + (reach > 0)).long() for reach in (positive, negative)]
    return Census(100, fired[0], fired[1], zeros, zeros, zeros + positive, zeros + negative)


def latent_after(sae: Any, latent: int, value: float, **options: Any) -> torch.Tensor:
    """z of one latent behind an edit, read off the step of x: `z' = z + step . d / |d|^2`."""
    step = EditLatents(sae, {latent: value}, **options).apply(X) - X
    d = sae.W_dec[latent].detach()
    return sae.encode(X)[:, latent].detach() + step @ d / (d @ d)


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (0.5, {"unit": "own"}, 2.0),
        (-0.5, {"unit": "own"}, -1.5),
        (3.0, {"unit": "own"}, 12.0),
        (1.0, {"mode": "dial"}, 4.0),
        (-1.0, {"mode": "dial"}, -3.0),
        (0.0, {"mode": "dial"}, 0.0),
        (-0.25, {"mode": "dial", "unit": "raw"}, -0.75),
        (0.5, {"unit": "raw"}, 0.5),
    ],
)
def test_clamped_values(value: float, options: dict[str, Any], expected: float) -> None:
    sae = make_sae("abstopk", dtype="float64")
    found = latent_after(sae, 4, value, scale=Scale(known_census(4.0, 3.0)), **options)
    torch.testing.assert_close(found, torch.full_like(found, expected), atol=1e-9, rtol=0)


def test_added_values_are_in_the_unit_too() -> None:
    sae, scale = make_sae("abstopk", dtype="float64"), Scale(known_census(4.0, 3.0))
    found = latent_after(sae, 4, -0.5, mode="add", scale=scale)
    torch.testing.assert_close(found, sae.encode(X)[:, 4] - 1.5, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["abstopk", "abstopk unscaled", "topk rescaled", "bi_jumprelu"])
def test_a_norm_of_one_moves_x_by_the_typical_norm(name: str) -> None:
    sae = make_sae(name, dtype="float64")
    scale = Scale(census(sae, [X]), X[7])
    edit = EditLatents(sae, {4: 0.3}, mode="add", unit="norm", scale=scale)
    moved = (edit.apply(X) - X).norm(dim=1)
    expected = torch.full_like(moved, 0.3 * X[7].norm().item())
    torch.testing.assert_close(moved, expected, atol=0, rtol=1e-6)


def test_a_side_never_seen_borrows_the_other_and_says_so() -> None:
    sae = make_sae("abstopk", dtype="float64")
    scale = Scale(known_census(4.0, 0.0))
    with pytest.warns(ExtrapolationWarning, match="latent 4, 5 never showed the sign"):
        edit = EditLatents(sae, {4: -0.5, 5: -1.0, 6: 1.0}, scale=scale)
    assert edit.extrapolated == (4, 5)
    with pytest.warns(ExtrapolationWarning):
        found = latent_after(sae, 4, -0.5, scale=scale)
    torch.testing.assert_close(found, torch.full_like(found, -2.0), atol=1e-9, rtol=0)
    with pytest.warns(ExtrapolationWarning):
        assert EditLatents(sae, {4: -1.0}, unit="raw", scale=scale).extrapolated == (4,)


@pytest.mark.parametrize("name", ["topk", "standard", "jumprelu", "gated", "matching_pursuit"])
def test_a_non_negative_sae_below_zero_is_extrapolated(name: str) -> None:
    sae = make_sae(name)
    with pytest.warns(ExtrapolationWarning, match="latent 4 never showed"):
        EditLatents(sae, {4: -1.0, 5: 2.0}, unit="raw")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EditLatents(sae, {4: 1.0, 5: 0.0}, unit="raw")
        EditLatents(sae, {4: 1.0}, mode="ablate")
        EditLatents(make_sae("abstopk"), {4: -1.0}, unit="raw")


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ({D_SAE: 1.0}, {"unit": "raw"}, "latent 80 does not exist: this SAE has latents 0 to 79"),
        ({-1: 1.0}, {"unit": "raw"}, "latent -1 does not exist"),
        ({True: 1.0}, {"unit": "raw"}, "latent True does not exist"),
        ({"4": 1.0}, {"unit": "raw"}, "latent '4' does not exist"),
        ({4: float("nan")}, {"unit": "raw"}, "the value of latent 4=nan is not allowed"),
        ({4: float("inf")}, {"mode": "ablate"}, "the value of latent 4=inf is not allowed"),
        ({4: 1.5}, {"mode": "dial"}, r"latent 4=1.5 is not allowed: .* >= -1 and <= 1"),
        ({4: 1.0}, {}, r"unit='own' needs to know .*measure_scale"),
        ({4: 1.0}, {"mode": "dial", "unit": "raw"}, "mode='dial' needs to know"),
        ({4: 1.0}, {"unit": "norm"}, "unit='norm' needs to know"),
        ({4: 1.0}, {"unit": "norms"}, "did you mean 'norm'"),
        ({4: 1.0}, {"mode": "clampp"}, "did you mean 'clamp'"),
        ({4: 1.0}, {"unit": "raw", "error": "kept"}, "error='kept' is not allowed"),
        ({4: 1.0}, {"scale": Scale(known_census(0, 0))}, "latent 4 fired on none of 100 tokens"),
        (
            {4: 1.0},
            {"unit": "norm", "scale": Scale(known_census(1, 1))},
            "needs an activation of median norm",
        ),
    ],
)
def test_bad_values_are_refused(values: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EditLatents(make_sae("abstopk"), values, **options)


def test_a_scale_of_another_sae_is_refused() -> None:
    sae = make_sae("abstopk", d_sae=40)
    with pytest.raises(ConfigError, match="scale is of an SAE with 80 latents, this one has 40"):
        EditLatents(sae, {4: 1.0}, scale=Scale(known_census(1, 1)))


def test_saes_that_do_not_encode_token_by_token_are_refused() -> None:
    transcoder = Transcoder(TranscoderConfig(d_in=8, d_sae=16, d_out=8, apply_b_dec_to_input=False))
    with pytest.raises(ConfigError, match="reads one hook and writes another"):
        EditLatents(transcoder, {1: 1.0}, unit="raw")
    temporal = TemporalSAE(TemporalSAEConfig(d_in=8, d_sae=128, n_heads=2, bottleneck_factor=2))
    with pytest.raises(ConfigError, match="reads whole sequences"):
        EditLatents(temporal, {1: 1.0}, unit="raw")


def test_an_sae_without_a_hook_asks_for_one() -> None:
    sae = make_sae("abstopk")
    sae.cfg.metadata.hook_name = None
    with pytest.raises(ConfigError, match="name no hook"):
        EditLatents(sae, {1: 1.0}, unit="raw").hooks_in(None)  # type: ignore[arg-type]
    assert EditLatents(sae, {1: 1.0}, unit="raw", hook=HOOK).hooks_in(None) == [HOOK]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AddVector(torch.ones(3), float("nan"), HOOK), "strength=nan is not allowed"),
        (lambda: AddVector(torch.tensor([1.0, torch.inf]), 1.0, HOOK), "holds NaN or infinite"),
        (lambda: AddVector(torch.ones(1, 2, 3), 1.0, HOOK), r"shape \[1, 2, 3\]"),
        (lambda: AblateDirection(torch.zeros(3)), "vector is 0"),
        (lambda: AblateDirection(torch.ones(3), float("inf")), "strength=inf is not allowed"),
    ],
)
def test_bad_vectors_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    "edit",
    [
        AddVector(torch.ones(7), 1.0, HOOK),
        AblateDirection(torch.ones(7), hooks=HOOK),
        EditLatents(make_sae("abstopk", d_in=7), {1: 1.0}, unit="raw"),
    ],
)
def test_another_width_is_refused(edit: Any) -> None:
    with pytest.raises(ConfigError, match="width 7, the hook gives 32"):
        edit.apply(torch.ones(2, 32))
