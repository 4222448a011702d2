"""Where SAEs are found: checkpoints, runs, the Hub; and what is refused before any work."""

import os
from pathlib import Path

import pytest
import torch

from sae_lens_bipolar.errors import CheckpointError, ConfigError, UnsafePathError
from sae_lens_bipolar.runs.sources import find_saes
from tests.hub.fake.clients import clients_at
from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import bench_sae, save_bench_sae


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_bench_sae(tmp_path / "abstopk", bench_sae("abstopk", tmp_path / "gpt2"))


def test_a_checkpoint_and_a_run_of_several(tmp_path: Path, checkpoint: Path) -> None:
    run = tmp_path / "run"
    for name in ("a", "b"):
        save_bench_sae(run / "checkpoints" / name, bench_sae("topk", tmp_path / "gpt2"))
    (run / "checkpoints" / "runner_cfg.json").write_text("{}")
    found = find_saes([checkpoint, run])
    assert [source.name for source in found] == ["abstopk", "a", "b"]
    assert found[1].digest == found[2].digest != found[0].digest
    assert found[0].load().cfg.architecture() == "abstopk"


def test_one_and_all_saes_of_a_hub_repository(tmp_path: Path, checkpoint: Path) -> None:
    files = {
        f"{folder}/{file.name}": file.read_bytes()
        for folder in ("layer_0/abstopk", "other")
        for file in checkpoint.iterdir()
        if file.is_file()
    }
    with HubServer() as hub, clients_at(hub, tmp_path / "caches"):
        hub.add_repository("someone/saes", files)
        for text in ("someone/saes:layer_0/abstopk", "someone/saes/layer_0/abstopk"):
            (found,) = find_saes([text])
            assert found.name == "layer_0-abstopk"
            assert found.origin == "someone/saes:layer_0/abstopk"
            there, here = found.load(), find_saes([checkpoint])[0].load()
            assert torch.equal(there.W_dec, here.W_dec)
        assert {source.name for source in find_saes(["someone/saes"])} == {
            "layer_0-abstopk",
            "other",
        }
        with pytest.raises(CheckpointError, match="holds no SAE nothing"):
            find_saes(["someone/saes:nothing"])


def test_what_is_no_sae_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="no SAE given"):
        find_saes([])
    with pytest.raises(CheckpointError, match="neither a checkpoint, a run directory"):
        find_saes([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no SAE"):
        find_saes([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="two SAEs are called 'abstopk'"):
        find_saes([checkpoint, checkpoint])


def test_names_and_runs_of_nested_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sae = bench_sae("topk", tmp_path / "gpt2")
    inner = save_bench_sae(run / "checkpoints/layer_0/topk", sae)
    save_bench_sae(inner / "publish/topk", sae)  # what a dry run wrote is no SAE of the run
    (run / "environment.json").write_text("{}")
    (whole,), (single,) = find_saes([run]), find_saes([inner])
    assert (whole.run_name, whole.name, whole.run_dir) == ("layer_0/topk", "layer_0-topk", run)
    assert (single.run_name, single.path, single.run_dir) == ("topk", inner, run)
    assert single.digest == whole.digest
    (alone,) = find_saes([run / "checkpoints/layer_0"])  # a folder of checkpoints
    assert (alone.run_name, alone.run_dir) == ("topk", None)


def test_a_run_that_has_not_finished_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "progress").mkdir()
    with pytest.raises(CheckpointError, match="has not finished training"):
        find_saes([tmp_path])


def test_a_folder_of_a_run_that_is_a_link_is_refused_by_name(
    tmp_path: Path, checkpoint: Path
) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/mine").symlink_to(checkpoint)
    with pytest.raises(CheckpointError, match=r"checkpoints/mine is a link"):
        find_saes([tmp_path / "run"])


def test_names_that_can_be_no_file_are_refused_in_a_sentence() -> None:
    for name in ("x" * 100_000, "a\0b"):
        with pytest.raises(CheckpointError, match="neither a checkpoint"):
            find_saes([name])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_pipes_and_links_out_of_the_run_are_refused_at_once(
    tmp_path: Path, checkpoint: Path, file: str
) -> None:
    run = tmp_path / "run"
    inner = save_bench_sae(run / "checkpoints/abstopk", bench_sae("abstopk", tmp_path / "gpt2"))
    (inner / file).unlink()
    (inner / file).symlink_to(checkpoint / file)
    with pytest.raises(UnsafePathError, match=rf"abstopk/{file} is a link that leaves"):
        find_saes([run])
    (inner / file).unlink()
    os.mkfifo(inner / file)
    with pytest.raises(CheckpointError, match=f"holds no {file}"):
        find_saes([run])


def test_a_checkpoint_by_itself_may_consist_of_links(tmp_path: Path, checkpoint: Path) -> None:
    """As the cache of huggingface_hub does."""
    (tmp_path / "snapshot").mkdir()
    for file in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / "snapshot" / file).symlink_to(checkpoint / file)
    (found,) = find_saes([tmp_path / "snapshot"])
    assert found.digest == find_saes([checkpoint])[0].digest
