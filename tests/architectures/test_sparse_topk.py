"""`sparse_topk` is SAELens's topk under its own name, and is saved as `topk`."""

import json
from pathlib import Path

import pytest
import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAE, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAE
from sae_lens.saes.topk_sae import TopKTrainingSAE as StockTopK
from torch.testing import assert_close

import sae_lens_bipolar  # noqa: F401  (registers the architecture)
from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.sparse_topk import (
    SparseTopKTrainingSAE,
    SparseTopKTrainingSAEConfig,
)
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.sparse.deferred import SparseLatents
from tests.architectures.family import step_input


def make(**options: object) -> SparseTopKTrainingSAE:
    torch.manual_seed(0)
    settings = {"d_in": 8, "d_sae": 64, "k": 4, **options}
    return SparseTopKTrainingSAE(SparseTopKTrainingSAEConfig(**settings))  # type: ignore[arg-type]


def test_it_is_registered_and_a_sae_lens_topk() -> None:
    assert get_sae_training_class("sparse_topk") == (
        SparseTopKTrainingSAE,
        SparseTopKTrainingSAEConfig,
    )
    assert isinstance(make(), StockTopK)


@pytest.mark.parametrize("rescale", [True, False])
def test_saved_as_topk(rescale: bool, tmp_path: Path) -> None:
    sae = make(rescale_acts_by_decoder_norm=rescale)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(64, 1) + 0.5)
        sae.b_enc.normal_()
    sae.save_inference_model(tmp_path / "inference")
    inference = SAE.load_from_disk(tmp_path / "inference")
    assert type(inference) is TopKSAE
    x = torch.randn(30, 8)
    assert_close(inference.encode(x), sae.encode(x), rtol=1e-5, atol=1e-6)
    assert_close(inference(x), sae(x), rtol=1e-5, atol=1e-6)

    sae.save_model(tmp_path / "training")
    again = TrainingSAE.load_from_disk(tmp_path / "training")
    assert type(again) is SparseTopKTrainingSAE
    assert again.cfg == sae.cfg
    assert TrainingSAEConfig.from_dict(json.loads(json.dumps(sae.cfg.to_dict()))) == sae.cfg
    assert torch.equal(again.encode(x), sae.encode(x))


def test_negative_latents_never_fire() -> None:
    """With every pre-activation below 0, stock TopK keeps k latents at 0: none fires."""
    sae = make(apply_b_dec_to_input=False)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    x = torch.randn(30, 8)
    with sparse.mode("sparse"):
        output = sae.training_forward_pass(step_input(x))
    assert isinstance(output.feature_acts, SparseLatents)
    assert output.feature_acts.bool().float().sum(0).sum() == 0
    output.loss.backward()
    assert sae.W_enc.grad is not None
    assert not sae.W_enc.grad.any()


@pytest.mark.parametrize("k", [0, 65])
def test_k_is_checked_when_the_config_is_made(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k={k}"):
        SparseTopKTrainingSAEConfig(d_in=8, d_sae=64, k=k)


def test_other_fields_are_checked_then_too() -> None:
    for field in ({"k": 2.0}, {"decoder_init_norm": -1.0}, {"normalize_activations": "batch"}):
        (name,) = field
        with pytest.raises(ConfigError, match=f"{name}="):
            SparseTopKTrainingSAEConfig(**{"d_in": 8, "d_sae": 64, "k": 4, **field})
    with pytest.raises(ConfigError, match="use_sparse_activations=True"):
        make(use_sparse_activations=True)
    made = SparseTopKTrainingSAEConfig(d_in=8, d_sae=64, k=4)
    assert made.metadata.training_architecture == "sparse_topk", "SAELens notes what was trained"
