"""`train` as a run: equal bytes, resuming, fine-tuning, Hub data, and clean ends."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae_lens_bipolar import load_sae
from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.errors import CheckpointError
from sae_lens_bipolar.files.digests import checkpoint_digest
from sae_lens_bipolar.runs import streams
from sae_lens_bipolar.runs.directory import read_metrics
from sae_lens_bipolar.runs.runner import RunDirectoryRunner
from tests.tiny_models import sentences

HOOK = "blocks.0.hook_mlp_out"
Words = Callable[..., list[str]]


@pytest.fixture
def words(tiny_model_dirs: dict[str, Path], tiny_text: Path, tmp_path: Path) -> Words:
    def make(output: str, *more: str, k: bool = True, data: str | None = None) -> list[str]:
        return [
            *("train", "--model_name", str(tiny_model_dirs["gpt2"]), "--hook_name", HOOK),
            *("--dataset_path", data or str(tiny_text), "--context_size", "16", "--seed", "1"),
            *("--training_tokens", "320", "--train_batch_size_tokens", "32"),
            *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--lr", "0.003"),
            *("--d_in", "32", "--d_sae", "48", "--output_path", str(tmp_path / output)),
            *(("--architecture", "abstopk", "-k", "4") if k else ()),
            *more,
        ]

    return make


def content(run_dir: Path) -> dict[str, Any]:
    """Every file of a run but what must differ: the seconds, the command and the lock."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in run_dir.rglob("*") if path.is_file()):
        name = str(file.relative_to(run_dir))
        if name.startswith(".lock") or name == "environment.json":
            continue
        if name == "metrics.jsonl":
            rows = read_metrics(file)
            found[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        elif name == "results/summary.json":
            rows = json.loads(file.read_text())
            found[name] = [{k: v for k, v in row.items() if k != "train_seconds"} for row in rows]
        else:
            found[name] = file.read_bytes()
    return found


def summary(run_dir: Path) -> dict[str, Any]:
    (row,) = json.loads((run_dir / "results/summary.json").read_text())
    return row


@pytest.fixture
def whole(words: Words, tmp_path: Path) -> dict[str, Any]:
    assert main(words("whole")) == 0
    return content(tmp_path / "whole")


def test_the_same_seed_gives_the_same_bytes_and_the_files_of_a_run(
    whole: dict[str, Any], words: Words, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # what was drawn before does not matter
    assert main(words("again")) == 0
    assert content(tmp_path / "again") == whole
    sae = "checkpoints/abstopk"
    assert whole.keys() >= {
        *("config.yaml", "metrics.jsonl", "results/summary.json", "results/census/abstopk.json"),
        *(f"{sae}/{n}" for n in ("cfg.json", "sae_weights.safetensors", "sealed.json")),
    }
    environment = json.loads((tmp_path / "whole/environment.json").read_text())
    assert environment["seed"] == 1
    assert main(words("other", "--seed", "2")) == 0
    weights = f"{sae}/sae_weights.safetensors"
    assert content(tmp_path / "other")[weights] != whole[weights]


def test_a_finished_run_is_not_redone_and_another_configuration_is_refused(
    whole: dict[str, Any], words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "whole").rglob("*") if p.is_file()}
    assert main(words("whole")) == 0
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "whole").rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if not p.name.startswith(".lock")} == {
        p: t for p, t in before.items() if not p.name.startswith(".lock")
    }
    assert main(words("whole", "--lr", "0.1")) == 2
    assert "lr: 0.003 there, 0.1 now" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 7])
def test_stopped_in_any_way_it_ends_with_the_same_bytes(
    whole: dict[str, Any], words: Words, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    log = tmp_path / "log"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stderr = log.open("w", buffering=1)
            trained = RunDirectoryRunner._watch

            def watch(self: Any, name: str, trainer: Any) -> None:
                trained(self, name, trainer)
                step_of = trainer.step

                def stopping(batch: torch.Tensor) -> Any:
                    if trainer.n_training_steps == step:
                        os.kill(os.getpid(), number)
                    return step_of(batch)

                trainer.step = stopping

            RunDirectoryRunner._watch = watch  # type: ignore[method-assign]
            code = main(words("stopped"))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    expected = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
    assert code == expected[number], log.read_text()[-2000:]
    if number != signal.SIGKILL:
        (said,) = [n for n in log.read_text().splitlines() if "sae-lens-bipolar:" in n]
        assert f"stopped by {number.name}" in said
        assert "the same command goes on" in said
        assert "Traceback" not in log.read_text()
    assert main(words("stopped")) == 0
    assert content(tmp_path / "stopped") == whole


def test_text_is_read_only_as_far_as_it_is_needed(words: Words, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    stream = sentences(3)
    with (folder / "a.jsonl").open("w") as file:
        for i in range(400):
            text = f"{i} " + " ".join(next(stream) for _ in range(20))
            file.write(json.dumps({"text": text}) + "\n")
    (folder / "b.parquet").write_bytes(b"this is no parquet file")
    assert main(words("out", data=str(folder))) == 0


def test_what_is_recorded_of_local_text_is_what_was_done(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    metadata = load_sae(tmp_path / "whole").cfg.metadata
    assert metadata.sequence_separator_token is None
    assert metadata.disable_concat_sequences is True
    assert metadata.prepend_bos is True


def test_measurements_carry_the_digest_and_a_replaced_sae_is_noticed(
    whole: dict[str, Any], words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "whole"
    digest = checkpoint_digest(run_dir / "checkpoints/abstopk")
    assert summary(run_dir)["digest"] == digest
    census = json.loads((run_dir / "results/census/abstopk.json").read_text())
    assert census["digest"] == digest
    assert main(words("other", "--seed", "2")) == 0
    shutil.rmtree(run_dir / "checkpoints/abstopk")
    shutil.copytree(tmp_path / "other/checkpoints/abstopk", run_dir / "checkpoints/abstopk")
    assert main(words("whole")) == 2
    assert "is not the SAE that" in capsys.readouterr().err


def test_fine_tuning_applies_what_it_can_and_records_the_sae_that_was_trained(
    words: Words, tmp_path: Path
) -> None:
    gated = ["--architecture", "sign_aware_gated", "--b_dec_init", "mean"]
    assert main(words("a", *gated, "--l0_target", "8", "--threshold_init_l0", "8", k=False)) == 0
    tuned = ["--from_pretrained_path", str(tmp_path / "a"), "--l0_target", "2", "--lr", "1e-9"]
    assert main(words("b", *tuned, k=False)) == 0
    before, after = (
        load_file(tmp_path / f"{run}/checkpoints/sign_aware_gated/sae_weights.safetensors")
        for run in "ab"
    )
    for name, tensor in before.items():  # with a learning rate of nearly 0 nothing moves
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-4)
    row, sae = summary(tmp_path / "b"), load_sae(tmp_path / "b")
    assert (row["architecture"], row["d_sae"]) == ("sign_aware_gated", 48)
    details = sae.cfg.metadata.training_architecture_details
    assert details["l0_target"] == 2
    recorded = yaml.safe_load((tmp_path / "b/config.yaml").read_text())["saes"]
    assert recorded["sign_aware_gated"]["l0_target"] == 2
    start = recorded["sign_aware_gated"]["start"]
    assert start["digest"] == checkpoint_digest(tmp_path / "a/checkpoints/sign_aware_gated")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--d_sae", "64"], "d_sae=64"),
        (["--decoder_init_norm", "0.5"], "decoder_init_norm=0.5"),
        (["--architecture", "sign_aware_gated"], "architecture='sign_aware_gated'"),
        (["--rescale_acts_by_decoder_norm", "false"], "rescale_acts_by_decoder_norm=False"),
    ],
)
def test_what_cannot_be_applied_to_an_sae_on_disk_is_refused(
    whole: dict[str, Any],
    words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    start = ["--from_pretrained_path", str(tmp_path / "whole")]
    assert main(words("tuned", *start, *more, k=False)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()


def test_k_of_an_sae_on_disk_can_be_changed(
    whole: dict[str, Any], words: Words, tmp_path: Path
) -> None:
    start = ["--from_pretrained_path", str(tmp_path / "whole"), "-k", "2"]
    assert main(words("tuned", *start, k=False)) == 0
    assert summary(tmp_path / "tuned")["l0"] == 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, datasets.Dataset]:
    """Data sets by name, as the Hub would give them."""
    stream = sentences(9)
    rows = [" ".join(next(stream) for _ in range(12)) for _ in range(60)]
    found = {"owner/text": datasets.Dataset.from_dict({"text": rows})}
    ids = [[0, *range(3 + i % 40, 3 + i % 40 + 19)] for i in range(200)]
    found["owner/ids"] = datasets.Dataset.from_dict({"input_ids": ids})

    def load(name: str, split: str, streaming: bool, **_: Any) -> Any:
        return found[name].to_iterable_dataset() if streaming else found[name]

    monkeypatch.setattr(streams.datasets, "load_dataset", load)
    monkeypatch.setattr(streams, "check_hub", lambda *_: True)
    monkeypatch.setattr(streams, "validate_pretokenized_dataset_tokenizer", lambda *_: None)
    return found


@pytest.mark.parametrize("name", ["owner/text", "owner/ids"])
def test_hub_data_is_tokenised_as_saelens_does_and_resumed_exactly(
    words: Words, hub: dict[str, datasets.Dataset], tmp_path: Path, name: str
) -> None:
    options = ["--n_eval_batches", "2", "--eval_batch_size_prompts", "4"]
    assert main(words("whole", *options, data=name)) == 0
    row = summary(tmp_path / "whole")
    assert row["n_eval_tokens"] + row["n_sink_tokens"] == 8 * 16
    separator = load_sae(tmp_path / "whole").cfg.metadata.sequence_separator_token
    assert separator == "bos"
    child = os.fork()
    if child == 0:  # killed after the second checkpoint
        try:
            seal = RunDirectoryRunner._save_runner_checkpoint_files

            def sealing(self: Any, checkpoint_path: Path) -> None:
                seal(self, checkpoint_path)
                if int(checkpoint_path.name) > 100:
                    os.kill(os.getpid(), signal.SIGKILL)

            RunDirectoryRunner._save_runner_checkpoint_files = sealing  # type: ignore[method-assign,assignment]
            (tmp_path / "ended").write_text(str(main(words("killed", *options, data=name))))
        except BaseException as error:
            (tmp_path / "ended").write_text(repr(error))
        finally:
            os._exit(1)
    code, ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), tmp_path / "ended"
    assert code == -signal.SIGKILL, ended.read_text()
    assert any((tmp_path / "killed/progress").iterdir())
    assert main(words("killed", *options, data=name)) == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    stream = ["--streaming", "false"]
    assert main(words("loaded", *options, *stream, data=name)) == 0
    weights = "checkpoints/abstopk/sae_weights.safetensors"
    assert content(tmp_path / "loaded")[weights] == content(tmp_path / "whole")[weights]


def test_hub_flags_change_the_rows(
    words: Words, hub: dict[str, datasets.Dataset], tmp_path: Path
) -> None:
    weights = "checkpoints/abstopk/sae_weights.safetensors"
    found = {}
    for number, more in enumerate(
        [[], ["--sequence_separator_token", "eos"], ["--disable_concat_sequences", "true"]]
    ):
        assert main(words(f"run{number}", *more, data="owner/text")) == 0
        found[(tmp_path / f"run{number}" / weights).read_bytes()] = more
    assert len(found) == 3


def test_local_rows_of_token_ids_train_and_may_be_said_to_be_tokenised(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[(7 * i + j) % 90 for j in range(40)] for i in range(60)]
    file = tmp_path / "ids.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    for said, code in (("true", 0), ("false", 2)):
        more = ["--is_dataset_tokenized", said]
        assert main(words(f"ids-{said}", *more, data=str(file))) == code
    assert "is a row of token ids; leave the option out" in capsys.readouterr().err
    assert main(words("text", "--is_dataset_tokenized", "true")) == 2
    assert "is_dataset_tokenized=True is not allowed" in capsys.readouterr().err


def test_hub_data_of_another_kind_or_too_short_are_refused(
    words: Words, hub: dict[str, datasets.Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["--is_dataset_tokenized", "true"]
    assert main(words("out", *said, data="owner/text")) == 2
    assert "is_dataset_tokenized=True" in capsys.readouterr().err
    many = ["--n_eval_batches", "300", "--eval_batch_size_prompts", "4"]
    assert main(words("out", *many, data="owner/ids")) == 2
    assert "too short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--context_size", "400"], "context_size=400"),
        (["--seed", "-1"], "seed=-1"),
        (["--dataset_path", ""], "dataset_path is missing"),
        (["--dataset_path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--hook_name", "blocks.0.hook_mlp_out", "--hook_head_index", "1"], "hook_head_index=1"),
        (["--hook_name", "blocks.0.attn.hook_z", "--hook_head_index", "4"], "hook_head_index=4"),
        (["--checkpoint_path", "OUT/checkpoints", "--n_checkpoints", "1"], "checkpoint_path="),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    said: str,
) -> None:
    (tmp_path / "private.txt").write_text("a secret " * 1000)
    monkeypatch.chdir(tmp_path)
    more = [word.replace("OUT", str(tmp_path / "out")) for word in more]
    assert main(words("out", *more)) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    assert main(words("out")) == 2
    assert "is not a directory" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_diverged_run_says_so_and_keeps_its_last_checkpoint(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("out", "--lr", "1e30")) == 2
    assert "diverged at lr=1e+30" in capsys.readouterr().err
    late = ["--lr", "1e30", "--lr_scheduler_name", "constant", "--lr_warm_up_steps", "0"]
    assert main(words("out", *late)) == 2
    assert not (tmp_path / "out/checkpoints").exists()


@pytest.mark.parametrize(
    ("hook_name", "d_in", "more"),
    [
        ("blocks.0.attn.hook_z", "32", []),
        ("blocks.0.attn.hook_q", "32", []),
        ("blocks.0.attn.hook_z", "8", ["--hook_head_index", "1"]),
        (HOOK, "32", ["--seqpos_slice", "2", "9"]),
    ],
)
def test_heads_and_positions_are_trained_and_measured(
    words: Words, tmp_path: Path, hook_name: str, d_in: str, more: list[str]
) -> None:
    assert main(words("out", "--hook_name", hook_name, "--d_in", d_in, *more)) == 0
    row = summary(tmp_path / "out")
    assert row["l0"] == 4
    if "--seqpos_slice" in more:
        assert row["n_eval_tokens"] % 7 == 0


def test_training_checkpoints_that_stay_load_with_the_scaling_folded_in(
    words: Words, tmp_path: Path
) -> None:
    for number, architecture in enumerate(
        [["--architecture", "abstopk", "-k", "4"], ["--architecture", "batch_abstopk", "-k", "4"]]
    ):
        scaled = ["--normalize_activations", "expected_average_only_in", "--lr", "1e-9"]
        scaled += ["--n_batches_for_norm_estimate", "2", "--n_checkpoints", "1"]
        scaled += ["--checkpoint_path", str(tmp_path / "kept")]
        run = f"run{number}"
        assert main(words(run, *architecture, *scaled, k=False)) == 0
        (checkpoint,) = (tmp_path / "kept" / run).iterdir()
        middle, final = load_sae(checkpoint), load_sae(tmp_path / run)
        assert middle.cfg.normalize_activations == "none"
        assert middle.cfg.architecture() == final.cfg.architecture()
        x = 30 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(middle.W_enc, final.W_enc, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(middle.W_dec, final.W_dec, rtol=1e-4, atol=1e-5)
        assert torch.isfinite(middle(x)).all()
        (checkpoint / "activation_scaler.json").unlink()
        if number == 0:
            with pytest.raises(CheckpointError, match="activation_scaler"):
                load_sae(checkpoint)


def test_a_run_of_several_saes_is_not_one_sae(whole: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "whole/checkpoints"
    assert load_sae(tmp_path / "whole").cfg.architecture() == "abstopk"
    shutil.copytree(folder / "abstopk", folder / "second")
    with pytest.raises(CheckpointError, match="a run of 2 SAEs"):
        load_sae(tmp_path / "whole")
