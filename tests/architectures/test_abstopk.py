"""What is `abstopk`'s alone: signed selection, and files SAELens reads without this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKTrainingSAEConfig
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE as StockAbsTopK
from sae_lens.saes.sae import SAE, SAEMetadata
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.sparse.deferred import SparseLatents
from tests.architectures.family import step_input

D_IN, D_SAE, K = 8, 64, 4


def trained(rescale: bool = True, steps: int = 5) -> AbsTopKTrainingSAE:
    torch.manual_seed(0)
    sae = AbsTopKTrainingSAE(
        AbsTopKTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            k=K,
            rescale_acts_by_decoder_norm=rescale,
            metadata=SAEMetadata(hook_name="blocks.0.hook_mlp_out"),
        )
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.05)
    for step in range(steps):
        with sparse.mode("sparse"):
            output = sae.training_forward_pass(step_input(torch.randn(32, D_IN), step=step))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sae


def test_by_hand() -> None:
    """x - b_dec = (1, 1), so u = (1, -4, 2.5, -2.5) + (0, 0, 0, 0.5): kept are -4 and 2.5."""
    cfg = AbsTopKTrainingSAEConfig(d_in=2, d_sae=4, k=2, rescale_acts_by_decoder_norm=False)
    sae = AbsTopKTrainingSAE(cfg)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, -4, 0, 0], [0, 0, 2.5, -2.5]]))
        sae.b_enc.copy_(torch.tensor([0, 0, 0, 0.5]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0]]))
        sae.b_dec.copy_(torch.tensor([0.25, 0.5]))
    x = torch.tensor([[1.25, 1.5]])
    with sparse.mode("sparse"):
        out = sae.training_forward_pass(step_input(x))
    assert isinstance(out.feature_acts, SparseLatents)
    assert out.feature_acts.tolist() == [[0.0, -4.0, 2.5, 0.0]]
    assert out.hidden_pre.tolist() == [[1.0, -4.0, 2.5, -2.0]]
    assert out.sae_out.tolist() == [[2.5 + 0.25, -4 + 2.5 + 0.5]]
    assert out.loss.item() == (2.75 - 1.25) ** 2 + (-1.0 - 1.5) ** 2


def test_it_is_a_sae_lens_abstopk() -> None:
    sae = trained(steps=0)
    assert isinstance(sae, StockAbsTopK)
    assert sae.cfg.architecture() == "abstopk"
    assert sae.state_dict().keys() == StockAbsTopK(sae.cfg).state_dict().keys()


@pytest.mark.parametrize("rescale", [True, False])
def test_saved_files_are_those_of_sae_lens(rescale: bool, tmp_path: Path) -> None:
    ours = trained(rescale)
    stock = StockAbsTopK(ours.cfg)
    stock.load_state_dict(ours.state_dict())
    for sae, name in ((ours, "ours"), (stock, "stock")):
        sae.save_model(tmp_path / name)
        sae.save_inference_model(tmp_path / f"{name}-inference")
    for suffix in ("", "-inference"):
        theirs = tmp_path / f"stock{suffix}"
        for file in theirs.iterdir():
            assert (tmp_path / f"ours{suffix}" / file.name).read_bytes() == file.read_bytes()


READ_WITHOUT_THIS_PACKAGE = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
for folder in map(Path, sys.argv[1:]):
    sae = SAE.load_from_disk(folder)
    assert type(sae).__module__ == "sae_lens.saes.abstopk_sae", type(sae)
    x = load_file(folder / "x.safetensors")["x"]
    save_file({"z": sae.encode(x), "recons": sae(x)}, folder / "z.safetensors")
assert not any(name.startswith("sae_lens_bipolar") for name in sys.modules)
"""


def test_sae_lens_alone_reads_a_checkpoint(tmp_path: Path) -> None:
    x = torch.randn(50, D_IN)
    saes = {tmp_path / str(rescale): trained(rescale) for rescale in (True, False)}
    for folder, sae in saes.items():
        sae.save_inference_model(folder)
        save_file({"x": x}, folder / "x.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_THIS_PACKAGE, *map(str, saes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for folder, sae in saes.items():
        alone = load_file(folder / "z.safetensors")
        inference = SAE.load_from_disk(folder)
        assert type(inference) is AbsTopKSAE
        assert torch.equal(alone["z"], inference.encode(x))
        assert torch.equal(alone["z"] != 0, sae.encode(x) != 0)
        assert (alone["z"] < 0).any()
        assert_close(alone["z"], sae.encode(x), rtol=1e-5, atol=1e-6)
        assert_close(alone["recons"], sae(x), rtol=1e-5, atol=1e-6)
        assert json.loads((folder / "cfg.json").read_text())["architecture"] == "abstopk"
