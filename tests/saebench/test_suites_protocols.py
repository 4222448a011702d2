"""What SAEBench is given: the same function, unit decoder rows, and poles on the split."""

import pytest
import torch

from sae_lens_bipolar.polarity.splitting import split_latents
from sae_lens_bipolar.saebench.host.views import LatentView
from sae_lens_bipolar.saebench.protocols import benchmarked, is_one_run
from tests.saebench.bench_models import ARCHITECTURES, D_IN, D_SAE, bench_sae

VARIANTS = [
    *((name, {}) for name in ARCHITECTURES),
    ("abstopk", {"rescale_acts_by_decoder_norm": True}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("unrolled_abstopk", {}),
]
SIGNED = ("abstopk", "sign_aware_gated", "bi_jumprelu", "unrolled_abstopk")


def inputs(n: int = 64) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(5)) * 2


@pytest.mark.parametrize("protocol", ["signed", "split"])
@pytest.mark.parametrize(("name", "cfg"), VARIANTS)
@torch.no_grad()
def test_the_function_is_the_same_and_decoder_rows_have_unit_norm(
    name: str, cfg: dict, protocol: str, tmp_path
) -> None:
    sae = bench_sae(name, tmp_path, **cfg)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    found = benchmarked(sae, protocol)
    x = inputs()
    torch.testing.assert_close(
        found.decode(found.encode(x)), sae.decode(sae.encode(x)), atol=1e-5, rtol=1e-5
    )
    norms = found.W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)
    for key, value in sae.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", SIGNED)
@torch.no_grad()
def test_the_split_shows_the_two_poles_of_the_signed_latents(
    name: str, rescale: bool, tmp_path
) -> None:
    fields = {"rescale_acts_by_decoder_norm": True} if rescale and "topk" in name else {}
    sae = bench_sae(name, tmp_path, **fields)
    signed, poles = benchmarked(sae, "signed"), benchmarked(sae, "split")
    x = inputs()
    latents = signed.encode(x)
    assert (latents < 0).any()
    torch.testing.assert_close(poles.encode(x), split_latents(latents), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(poles.W_dec, torch.cat([signed.W_dec, -signed.W_dec]))
    assert poles.cfg.d_sae == 2 * D_SAE == poles.W_enc.shape[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_non_negative_saes_are_one_run(name: str, tmp_path) -> None:
    assert is_one_run(bench_sae(name, tmp_path)) == (name not in SIGNED)


@pytest.mark.parametrize(("name", "cfg"), [case for case in VARIANTS if case[0] not in SIGNED])
@torch.no_grad()
def test_a_non_negative_sae_has_the_same_latents_on_both_protocols(
    name: str, cfg: dict, tmp_path
) -> None:
    sae = bench_sae(name, tmp_path, **cfg)
    signed, split = benchmarked(sae, "signed"), benchmarked(sae, "split")
    assert type(signed) is type(split)
    assert split.cfg.d_sae == sae.cfg.d_sae
    assert torch.equal(split.encode(inputs()), signed.encode(inputs()))


@torch.no_grad()
def test_ablating_a_latent_of_a_view_removes_its_decoder_row(tmp_path) -> None:
    sae = bench_sae("unrolled_abstopk", tmp_path)
    view = LatentView(sae, split=True)
    latents = view.encode(inputs())
    i = int(latents.sum(0).argmax())
    without = latents.clone()
    without[:, i] = 0
    removed = view.decode(latents) - view.decode(without)
    torch.testing.assert_close(removed, latents[:, i, None] * view.W_dec[i], atol=1e-5, rtol=1e-5)
