"""What publishing a stranger's run, or into a folder of the user's, reads, uploads and deletes."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from sae_lens_bipolar.errors import (
    BipolarError,
    CheckpointError,
    DataError,
    HubError,
    UnsafePathError,
)
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.runs.checkpoints import seal_checkpoint
from tests.hub.published_run import write_run

SECRET = "key of somebody, in no form that a scan knows"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ("abstopk", "topk"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "id_rsa").write_text(SECRET)
    return folder


def staged(path: Path, **options: Any) -> Path:
    config = PublishConfig("ada/signed", license="mit", **options)
    folder = publish(path, config, dry_run=True).folder
    assert folder is not None
    return folder


def text_of(folder: Path) -> str:
    files = (file for file in folder.rglob("*") if file.is_file())
    return "".join(file.read_bytes().decode(errors="replace") for file in files)


LINKED = (
    *("results/x.csv", "results/x.json", "results/summary.json", "results/census/topk.json"),
    *("metrics.jsonl", "config.yaml", "environment.json", "checkpoints/runner_cfg.json"),
    *("checkpoints/topk/sparsity.safetensors", "checkpoints/topk/sae_weights.safetensors"),
    *("checkpoints/topk/cfg.json", "bench/config.yaml", ".lock.json", "anything"),
)


@pytest.mark.parametrize("name", LINKED)
def test_a_link_out_of_the_run_is_refused_by_name(run: Path, victim: Path, name: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim / "id_rsa")
    for path in (run, run / "checkpoints/topk"):  # of the run, and of one SAE in it
        with pytest.raises(UnsafePathError, match=Path(name).name):
            staged(path)
    assert (victim / "id_rsa").read_text() == SECRET
    assert not (run / "publish").exists()


@pytest.mark.parametrize("name", ["results", "bench", "checkpoints/topk", "checkpoints"])
def test_a_folder_that_is_a_link_is_refused(run: Path, victim: Path, name: str) -> None:
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(victim)
    with pytest.raises(BipolarError):
        staged(run)
    assert [file.name for file in victim.iterdir()] == ["id_rsa"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
@pytest.mark.parametrize("name", ["metrics.jsonl", "results/x.csv", "checkpoints/topk/cfg.json"])
def test_pipes_are_refused_at_once(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(BipolarError):
        staged(run)


def test_only_what_publish_knows_leaves_the_run(run: Path) -> None:
    for name in (
        "results/notes.csv",
        "results/a.json",
        "notes.txt",
        "results/latents/abstopk.json",
    ):
        (run / name).write_text(json.dumps({"x": SECRET}))
    assert SECRET not in text_of(staged(run))


def test_a_publish_folder_of_the_user_is_left_alone(run: Path) -> None:
    (run / "publish").mkdir()
    (run / "publish/thesis.tex").write_text(SECRET)
    with pytest.raises(UnsafePathError, match="publish was not made by `publish`"):
        staged(run)
    assert (run / "publish/thesis.tex").read_text() == SECRET


def test_a_staged_folder_is_replaced_and_its_mark_is_not_sent(run: Path) -> None:
    first = staged(run)
    (first / "old.txt").write_text("old")
    second = staged(run)
    assert first == second
    assert not (second / "old.txt").exists()
    from sae_lens_bipolar.hub.publishing import _files

    assert (second / ".sae-lens-bipolar").is_file()
    assert ".sae-lens-bipolar" not in _files(second)


def swap(run: Path, name: str = "topk") -> None:
    """Other weights of the same shape, sealed: a whole checkpoint of another training."""
    file = run / "checkpoints" / name / "sae_weights.safetensors"
    tensors = {key: 1.5 * tensor for key, tensor in load(file.read_bytes()).items()}
    save_file(tensors, file)
    seal_checkpoint(file.parent)


def test_a_checkpoint_swapped_for_another_does_not_publish_with_the_old_numbers(run: Path) -> None:
    swap(run)
    with pytest.raises(DataError, match=r"summary\.json was measured on other weights of 'topk'"):
        staged(run)
    with pytest.raises(DataError, match=r"measured on other weights of 'topk'"):
        staged(run / "checkpoints/topk", id="elsewhere")
    assert "| abstopk | 24 |" in (staged(run / "checkpoints/abstopk") / "README.md").read_text()


def test_swapped_names_do_not_swap_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ("abstopk", "topk"))
    a, b = run / "checkpoints/abstopk", run / "checkpoints/topk"
    a.rename(run / "c")
    b.rename(a)
    (run / "c").rename(b)
    card = (staged(run) / "README.md").read_text()
    # the row of a checkpoint follows its weights, whatever they are called now
    assert "| topk | abstopk | 24 | 4.0 |" in card
    assert "| abstopk | topk | 24 | 5.0 |" in card


def test_numbers_that_name_no_weights_are_left_out_and_that_is_said(run: Path) -> None:
    file = run / "results/summary.json"
    rows = json.loads(file.read_text())
    for row in rows:
        if row["name"] == "topk":
            del row["digest"]
            row["l0"] = 1234.5
    file.write_text(json.dumps(rows))
    folder = staged(run)
    card = (folder / "README.md").read_text()
    assert "The run's figures for `topk` are left out" in card
    assert "1234.5" not in text_of(folder)
    assert "| abstopk | 24 |" in card
    assert not (folder / "results/census/topk.json").exists()
    assert '"topk"' not in (folder / "metrics.jsonl").read_text()


def test_a_census_of_other_weights_stays_behind(run: Path) -> None:
    file = run / "results/census/topk.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "digest": "0" * 64}))
    folder = staged(run)
    assert not (folder / "results/census/topk.json").exists()
    assert (folder / "results/census/abstopk.json").exists()


def test_published_figures_name_the_published_weights(run: Path) -> None:
    from sae_lens_bipolar.files.digests import is_of

    folder = staged(run, id="layer12")
    for row in json.loads((folder / "layer12/results/summary.json").read_text()):
        assert is_of(row, folder / row["name"])


def test_free_text_in_a_header_of_weights_stays_behind(run: Path) -> None:
    file = run / "checkpoints/topk/sae_weights.safetensors"
    tensors = load(file.read_bytes())
    save_file(tensors, file, metadata={"made by": SECRET})
    (run / "results/summary.json").unlink()
    folder = staged(run)
    assert SECRET not in text_of(folder)
    assert torch.equal(
        load_file(folder / "topk/sae_weights.safetensors")["W_dec"], tensors["W_dec"]
    )


def _sparsity(tensors: dict[str, torch.Tensor]) -> Callable[[Path], object]:
    return lambda run: save_file(tensors, run / "checkpoints/topk/sparsity.safetensors")


DAMAGED: dict[str, tuple[Callable[[Path], object], type[BipolarError], str]] = {
    "other tensors": (_sparsity({"keys": torch.zeros(24)}), CheckpointError, "'sparsity'"),
    "of another width": (_sparsity({"sparsity": torch.zeros(5)}), CheckpointError, "'sparsity'"),
    "no numbers": (
        _sparsity({"sparsity": torch.full((24,), torch.nan)}),
        CheckpointError,
        "holds NaN",
    ),
    "NaN in the summary": (
        lambda run: (run / "results/summary.json").write_text(
            (run / "results/summary.json").read_text().replace("0.25", "NaN")
        ),
        DataError,
        "not finite",
    ),
    "a summary of no rows": (
        lambda run: (run / "results/summary.json").write_text('{"name": "topk"}'),
        DataError,
        "expected a list",
    ),
    "aliases": (
        lambda run: (run / "config.yaml").write_text("a: &a [x]\nb: [*a, *a]\n"),
        DataError,
        "alias",
    ),
    "a list for a configuration": (
        lambda run: (run / "config.yaml").write_text("- a\n"),
        DataError,
        "expected an object",
    ),
    "numbers of 400 digits": (
        lambda run: (run / "environment.json").write_text(f'{{"seed": {"9" * 400}}}'),
        DataError,
        "400 digits",
    ),
    "a census outside": (
        lambda run: _rename_row(run, "../../secret"),
        BipolarError,
        "not a path below",
    ),
    "an address with a password": (
        lambda run: (run / "config.yaml").write_text("corpus: https://ada:s3cret@host/x\n"),
        HubError,
        "config.yaml would publish a password in an address",
    ),
}


def _rename_row(run: Path, name: str) -> None:
    file = run / "results/summary.json"
    rows = json.loads(file.read_text())
    rows[1]["name"] = name
    file.write_text(json.dumps(rows))


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_in_a_sentence(run: Path, case: str) -> None:
    damage, error, words = DAMAGED[case]
    damage(run)
    with pytest.raises(error, match=words):
        staged(run)


@pytest.mark.parametrize("beside", [True, False])
def test_a_checkpoint_from_the_middle_of_a_training_is_refused(run: Path, beside: bool) -> None:
    path = run / "checkpoints/topk"
    if beside:
        (path / "activation_scaler.json").write_text('{"scaling_factor": 0.125}')
    else:
        config = json.loads((path / "cfg.json").read_text())
        config["normalize_activations"] = "expected_average_only_in"
        (path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"middle of a training .* Finish the training"):
        staged(path)


def test_names_of_a_megabyte_are_no_traceback(tmp_path: Path) -> None:
    hostile = 'x")\nimport os\n`|<b>' * 50_000
    run = write_run(tmp_path / "run", ("topk",), model_name=hostile, hook_name=hostile)
    assert len((staged(run) / "README.md").read_text()) < 60_000
