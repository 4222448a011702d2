"""A view's arithmetic, number by number, on an SAE small enough to calculate by hand."""

from pathlib import Path

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_bipolar.saebench.host.views import LatentView
from tests.saebench.bench_models import bench_sae

# Decoder rows of norm 5, 0 (a latent that was never trained) and 0.5.
W_DEC = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -0.5]])
W_ENC = torch.tensor([[1.0, 2.0, -3.0], [4.0, 0.5, 6.0]])
B_ENC = torch.tensor([0.25, -0.5, 1.0])
B_DEC = torch.tensor([0.1, -0.2])
NORMS = torch.tensor([5.0, 1.0, 0.5])
X = torch.tensor([[1.0, -2.0], [0.5, 0.25]])


@pytest.fixture
def sae() -> AbsTopKSAE:
    """Every latent is kept, so that the encoder is one affine map."""
    found = AbsTopKSAE(AbsTopKSAEConfig(d_in=2, d_sae=3, k=3))
    with torch.no_grad():
        for name, value in (("W_dec", W_DEC), ("W_enc", W_ENC), ("b_enc", B_ENC), ("b_dec", B_DEC)):
            getattr(found, name).copy_(value)
    return found


@torch.no_grad()
def test_weights_and_bias_are_scaled_as_the_latents_are(sae: AbsTopKSAE) -> None:
    view = LatentView(sae)
    rows = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(view.W_dec, rows)
    torch.testing.assert_close(view.W_enc, W_ENC * NORMS)
    torch.testing.assert_close(view.b_enc, torch.tensor([1.25, -0.5, 0.5]))
    latents = view.encode(X)
    expected = (X - B_DEC * sae.cfg.apply_b_dec_to_input) @ view.W_enc + view.b_enc
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(view.decode(latents), latents @ view.W_dec + B_DEC)
    torch.testing.assert_close(view(X), sae.decode(sae.encode(X)))
    assert view.cfg.d_sae == 3
    assert view.cfg is not sae.cfg


@torch.no_grad()
def test_the_split_has_both_poles_of_weights_bias_and_latents(sae: AbsTopKSAE) -> None:
    view, whole = LatentView(sae, split=True), LatentView(sae)
    torch.testing.assert_close(view.W_dec, torch.cat([whole.W_dec, -whole.W_dec]))
    torch.testing.assert_close(view.W_enc, torch.cat([whole.W_enc, -whole.W_enc], dim=1))
    torch.testing.assert_close(view.b_enc, torch.cat([whole.b_enc, -whole.b_enc]))
    latents, signed = view.encode(X), whole.encode(X)
    assert (signed < 0).any()
    assert (signed > 0).any()
    torch.testing.assert_close(latents, torch.cat([signed.relu(), (-signed).relu()], dim=-1))
    torch.testing.assert_close(view.decode(latents), latents @ view.W_dec + B_DEC)
    torch.testing.assert_close(view(X), sae.decode(sae.encode(X)))
    assert view.cfg.d_sae == 6
    assert sae.cfg.d_sae == 3


@torch.no_grad()
@pytest.mark.parametrize("split", [False, True])
def test_a_decoder_row_of_zeros_leaves_everything_finite(sae: AbsTopKSAE, split: bool) -> None:
    view = LatentView(sae, split=split)
    latents = view.encode(X)
    for tensor in (view.W_enc, view.W_dec, view.b_enc, view.norms, latents, view.decode(latents)):
        assert torch.isfinite(tensor).all()
    torch.testing.assert_close(view.norms, NORMS)
    assert latents[:, 1].any() or latents[:, -2].any(), "it fires, and reconstructs nothing"
    torch.testing.assert_close(view.decode(latents), sae.decode(sae.encode(X)))


@torch.no_grad()
def test_an_sae_without_an_encoder_bias_has_one_of_zeros(tmp_path: Path) -> None:
    sae = bench_sae("sign_aware_gated", tmp_path)
    assert not hasattr(sae, "b_enc")
    for split in (False, True):
        view = LatentView(sae, split=split)
        assert view.b_enc.shape == (view.cfg.d_sae,)
        assert not view.b_enc.any()


def test_a_view_is_where_its_sae_is_and_holds_no_gradient(sae: AbsTopKSAE) -> None:
    view = LatentView(sae.to(torch.float64))
    assert (view.dtype, view.device) == (torch.float64, torch.device("cpu"))
    for tensor in (view.W_enc, view.W_dec, view.b_enc, view.norms):
        assert tensor.dtype == torch.float64
        assert not tensor.requires_grad
    buffers = {name for name, _ in view.named_buffers(recurse=False)}
    assert buffers == {"W_enc", "W_dec", "b_enc", "norms"}


@torch.no_grad()
def test_a_view_belongs_to_no_batch_shape(sae: AbsTopKSAE) -> None:
    view = LatentView(sae, split=True)
    x = torch.stack([X, 2 * X])
    torch.testing.assert_close(view.encode(x)[1], view.encode(2 * X))
    torch.testing.assert_close(view(x)[0], view(X))
