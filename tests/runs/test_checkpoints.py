"""Checkpoints are whole or refused, and the refusal says what is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from sae_lens import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig, TopKSAE, TopKSAEConfig
from safetensors.torch import load, save_file

import sae_lens_bipolar  # noqa: F401
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)
from sae_lens_bipolar.errors import CheckpointError
from sae_lens_bipolar.runs.checkpoints import (
    is_whole,
    latest_checkpoint,
    load_sae,
    remove_checkpoints,
    seal_checkpoint,
)


@pytest.fixture(params=["abstopk", "sign_aware_gated"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sae = (
        AbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(d_in=6, d_sae=12, k=3))
        if request.param == "abstopk"
        else SignAwareGatedTrainingSAE(SignAwareGatedTrainingSAEConfig(d_in=6, d_sae=12))
    )
    sae.save_inference_model(tmp_path / request.param)
    return tmp_path / request.param


def edit_config(path: Path, **changes: object) -> None:
    file = path / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_good_checkpoint_loads(checkpoint: Path) -> None:
    sae = load_sae(checkpoint)
    assert sae.cfg.architecture() == checkpoint.name
    assert sae(torch.randn(2, 6)).shape == (2, 6)


def test_missing_extra_and_misshapen_tensors_are_named(checkpoint: Path) -> None:
    file = checkpoint / "sae_weights.safetensors"
    weights = load(file.read_bytes())
    weights.pop("b_dec")
    weights["W_gate"] = torch.zeros(2)
    weights["W_dec"] = torch.zeros(12, 5)
    save_file(weights, file)
    with pytest.raises(CheckpointError) as error:
        load_sae(checkpoint)
    for words in (
        "b_dec is missing",
        "W_gate does not belong",
        "W_dec has shape [12, 5], expected [12, 6]",
    ):
        assert words in str(error.value)


def test_another_architectures_weights_are_refused(checkpoint: Path) -> None:
    other = "sign_aware_gated" if checkpoint.name == "abstopk" else "abstopk"
    edit_config(checkpoint, architecture=other)
    with pytest.raises(CheckpointError, match=f"does not hold a {other} SAE"):
        load_sae(checkpoint)


def test_unknown_architecture_suggests_near_names(checkpoint: Path) -> None:
    edit_config(checkpoint, architecture="abs_topk")
    with pytest.raises(CheckpointError, match="did you mean 'abstopk'"):
        load_sae(checkpoint)


def test_wrong_sizes_in_the_config_are_refused(checkpoint: Path) -> None:
    edit_config(checkpoint, d_sae=13)
    with pytest.raises(CheckpointError, match=r"expected \[6, 13\]"):
        load_sae(checkpoint)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_missing_and_truncated_files_are_refused(checkpoint: Path, name: str) -> None:
    file = checkpoint / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name):
        load_sae(checkpoint)
    file.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_sae(checkpoint)


def test_a_pickle_in_place_of_the_weights_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "sae_weights.safetensors"
    torch.save(load(file.read_bytes()), file)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_sae(checkpoint)


def test_only_whole_checkpoints_are_found(tmp_path: Path) -> None:
    for name in ("100", "200", "300", "notes"):
        (tmp_path / name / "sae").mkdir(parents=True)
        (tmp_path / name / "sae" / "weights").write_bytes(bytes(range(50)))
    for name in ("100", "200"):
        seal_checkpoint(tmp_path / name)
    assert latest_checkpoint(tmp_path) == tmp_path / "200"  # 300 was never sealed
    (tmp_path / "200" / "sae" / "weights").write_bytes(bytes([1, *range(1, 50)]))  # one bit flipped
    assert not is_whole(tmp_path / "200")
    assert latest_checkpoint(tmp_path) == tmp_path / "100"
    (tmp_path / "100" / "sae" / "weights").unlink()
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_removing_keeps_the_newest(tmp_path: Path) -> None:
    for name in ("100", "200"):
        (tmp_path / name).mkdir()
    remove_checkpoints(tmp_path, keep=tmp_path / "200")
    assert [path.name for path in tmp_path.iterdir()] == ["200"]
    remove_checkpoints(tmp_path)
    assert not tmp_path.exists()
    shutil.rmtree(tmp_path, ignore_errors=True)


def _edited(path: Path, **changes: object) -> Path:
    file = path / "cfg.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (path / "sealed.json").unlink(missing_ok=True)
    return path


def _topk(path: Path) -> Path:
    TopKSAE(TopKSAEConfig(d_in=4, d_sae=8, k=2)).save_model(path)
    return path


@pytest.mark.parametrize("d_sae", [10**9 + 7, 2**62, 10**30])
@pytest.mark.parametrize("field", ["d_in", "d_sae"])
def test_sizes_beyond_the_weights_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, d_sae: int
) -> None:
    path = _edited(_topk(tmp_path / "sae"), **{field: d_sae})
    monkeypatch.setattr(TopKSAE, "__init__", lambda *_: pytest.fail("was built"))
    with pytest.raises(CheckpointError, match=rf"{field}={d_sae}.* do not fit .* 76 numbers"):
        load_sae(path)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, dtype=torch.complex64), torch.zeros(4, dtype=torch.int64)]
)
def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    file = _topk(tmp_path / "sae") / "sae_weights.safetensors"
    save_file({**load(file.read_bytes()), "b_dec": tensor}, file)
    with pytest.raises(CheckpointError, match=r"b_dec in .* is of type"):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    file = _topk(tmp_path / "sae") / "sae_weights.safetensors"
    tensors = load(file.read_bytes())
    tensors["W_dec"][3, 2] = value
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"W_dec of .* holds NaN or infinite"):
        load_sae(tmp_path / "sae")


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    file = _topk(tmp_path / "sae") / "sae_weights.safetensors"
    tensors = {name: tensor.double() for name, tensor in load(file.read_bytes()).items()}
    tensors["b_dec"][0] = 1e300
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"b_dec of .* holds NaN or infinite"):
        load_sae(tmp_path / "sae", dtype="float32")


def test_names_and_numbers_of_any_size_are_answered_in_a_short_sentence(tmp_path: Path) -> None:
    path = _topk(tmp_path / "sae")
    hostile = "\x1b]0;owned\x07" + "x" * 1_000_000
    file = path / "sae_weights.safetensors"
    weights = load(file.read_bytes())
    extra = {f"{hostile}{i}": torch.zeros(1) for i in range(20)}
    for change in ({"architecture": hostile}, {"dtype": hostile}, {"k": 10**39}, {"k": hostile}):
        _edited(_topk(path), **change)
        with pytest.raises(CheckpointError) as caught:
            load_sae(path)
        assert len(str(caught.value)) < 5000
        assert "\x1b" not in str(caught.value)
    save_file(weights | extra, file)
    with pytest.raises(CheckpointError, match="and 12 more") as caught:
        load_sae(_edited(path, k=2, dtype="float32", architecture="topk"))
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path, file: str) -> None:
    path = _topk(tmp_path / "sae")
    for make in (os.mkfifo, lambda name: os.symlink("/dev/zero", name)):
        (path / file).unlink()
        make(path / file)
        with pytest.raises(CheckpointError, match="only regular files are read"):
            load_sae(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"d_in": ' + "9" * 400 + "}", '{"a":' * 5000 + "1" + "}" * 5000]
)
def test_nested_and_endless_configurations_are_refused(tmp_path: Path, text: str) -> None:
    (_topk(tmp_path / "sae") / "cfg.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cfg\.json"):
        load_sae(tmp_path / "sae")
