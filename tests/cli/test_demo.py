"""The demo end to end on a tiny model: files, reproducible figures, and going on after SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from sae_lens_bipolar.cli.demonstration import DemoConfig, load_assets
from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.inputs.corpora import TokenSplit
from sae_lens_bipolar.runs.directory import read_metrics

NAMES = ["topk", "abstopk", "gated", "sign_aware_gated"]
KEYS = {
    *("architecture", "d_in", "d_sae", "l0", "nmse", "r2", "loss_recovered", "dead_fraction"),
    *("bipolar_fraction", "n_train_tokens", "n_eval_tokens", "seed"),
}
OPTIONS = {
    "hook_name": "blocks.1.hook_resid_post",
    "d_sae": 96,
    "l0": 6,
    "context_size": 32,
    "training_tokens": 3200,
    "train_batch_size_tokens": 64,
    "lr": 0.01,
    "lr_warm_up_steps": 2,
    "lr_decay_steps": 5,
    "n_checkpoints": 4,
    "eval_sequences": 24,
    "loss_sequences": 24,
    "latents_shown": 3,
    "seed": 3,
}


def arguments(model: Path, text: Path, output: Path) -> list[str]:
    options = [f"--{key.replace('_', '-')}={value}" for key, value in OPTIONS.items()]
    return ["demo", f"--model={model}", f"--corpus={text}", f"--output={output}", *options]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_dirs, tiny_text) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "demo"
    assert main(arguments(tiny_model_dirs["gpt2"], tiny_text, run_dir)) == 0
    return run_dir


def test_all_files_of_the_contract_are_there(finished: Path) -> None:
    summary = json.loads((finished / "results/summary.json").read_text())
    assert [row["architecture"] for row in summary] == NAMES
    for row in summary:
        assert row.keys() >= KEYS
        assert row["d_in"] == 32
        assert row["n_train_tokens"] == OPTIONS["training_tokens"]
        assert row["n_eval_tokens"] + row["n_sink_tokens"] == 24 * 32
        assert row["seed"] == 3
        signed = row["architecture"] in ("abstopk", "sign_aware_gated")
        assert (row["bipolar_fraction"] > 0) == signed
    assert {row["sae"] for row in read_metrics(finished / "metrics.jsonl")} == set(NAMES)
    assert yaml.safe_load((finished / "config.yaml").read_text())["l0"] == OPTIONS["l0"]
    environment = json.loads((finished / "environment.json").read_text())
    assert {"torch", "sae-lens", "transformer-lens"} <= environment["packages"].keys()
    for name in NAMES:
        for file in ("cfg.json", "sae_weights.safetensors"):
            assert (finished / "checkpoints" / name / file).is_file()
        assert json.loads((finished / f"results/latents/{name}.json").read_text())["name"] == name
    page = (finished / "report/index.html").read_text()
    assert all(f"{row['nmse']:.3f}" in page for row in summary)


# A process that knows nothing of the run but its files.
MEASURE_AGAIN = """
import json, sys
from functools import partial
from pathlib import Path
import torch, yaml
import sae_lens_bipolar
from sae_lens import SAE
from sae_lens_bipolar.cli.demonstration import DemoConfig, load_assets, summarise
from sae_lens_bipolar.evaluation.reconstruction import measure
run_dir = Path(sys.argv[1])
config = yaml.safe_load((run_dir / "config.yaml").read_text())
config.pop("saes")
config = DemoConfig(**config)
assets = load_assets(config)
held_out = torch.as_tensor(assets.tokens.held_out[: config.eval_sequences]["input_ids"])
paths = [path for path in (run_dir / "checkpoints").iterdir() if path.is_dir()]
saes = {path.name: SAE.load_from_disk(path) for path in paths}
found = measure(saes, assets.model, held_out, n_loss_sequences=config.loss_sequences)
print(json.dumps({name: summarise(m) for name, m in found.items()}))
"""


def test_every_figure_is_reproduced_from_the_checkpoints_in_a_new_process(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE_AGAIN, str(finished)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads(done.stdout.splitlines()[-1])
    for row in json.loads((finished / "results/summary.json").read_text()):
        for key, value in again[row["name"]].items():
            if key != "with_sinks":
                assert row[key] == pytest.approx(value, rel=0.01), (row["name"], key)


STOCK = """
import sys
import torch
from sae_lens import SAE
sae = SAE.load_from_disk(sys.argv[1])
torch.manual_seed(0)
z = sae.encode(torch.randn(64, sae.cfg.d_in))
torch.save(z, sys.argv[2])
assert not [name for name in sys.modules if name.startswith("sae_lens_bipolar")]
"""


def test_abstopk_gives_the_same_activations_where_this_package_was_never_imported(
    finished: Path, tmp_path: Path
) -> None:
    import torch
    from sae_lens import SAE

    path = finished / "checkpoints/abstopk"
    command = [sys.executable, "-W", "ignore", "-c", STOCK, str(path), str(tmp_path / "z.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.manual_seed(0)
    here = SAE.load_from_disk(path).encode(torch.randn(64, 32))
    torch.testing.assert_close(torch.load(tmp_path / "z.pt"), here, rtol=1e-5, atol=1e-6)


def test_no_held_out_document_is_in_the_training_tokens(tiny_model_dirs, tiny_text) -> None:
    config = DemoConfig(model=str(tiny_model_dirs["gpt2"]), corpus=str(tiny_text), **OPTIONS)
    model, tokens = load_assets(config)
    assert isinstance(tokens, TokenSplit)
    train = {tuple(row) for row in tokens.train["input_ids"]}
    held_out = {tuple(row) for row in tokens.held_out["input_ids"]}
    assert train
    assert held_out
    assert not train & held_out
    assert isinstance(tokens.train, Dataset)
    texts = {json.loads(line)["title"]: json.loads(line)["text"] for line in tiny_text.open()}
    encode = partial(model.tokenizer, add_special_tokens=False)  # type: ignore[arg-type]
    encoded = {name: encode(text)["input_ids"] for name, text in texts.items()}
    owner = {
        tuple(ids[start : start + 31]): name
        for name, ids in encoded.items()
        for start in range(0, len(ids) - 30, 31)
    }
    trained_on = {owner[row[1:]] for row in train}
    kept_back = {owner[row[1:]] for row in held_out}
    assert not trained_on & kept_back


def test_a_finished_run_is_not_redone_and_another_configuration_is_refused(
    finished: Path, tiny_model_dirs, tiny_text, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [p for p in finished.rglob("*") if p.is_file() and "report" not in p.parts]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = arguments(tiny_model_dirs["gpt2"], tiny_text, finished)
    assert main(again) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert main([*again, "--l0=7"]) == 2
    message = capsys.readouterr().err
    assert "l0: 6 there, 7 now" in message
    assert main(["report", str(finished)]) == 0


@pytest.mark.parametrize(
    "moment", ["checkpoints/abstopk", "progress", "results/summary.json", "results/latents"]
)
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_files(
    finished: Path, tmp_path: Path, tiny_model_dirs, tiny_text, moment: str
) -> None:
    """SIGKILL as soon as a file appears; the same command then completes the run."""
    run_dir = tmp_path / "demo"
    command = arguments(tiny_model_dirs["gpt2"], tiny_text, run_dir)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "sae_lens_bipolar.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (run_dir / moment).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(command) == 0
    expected = json.loads((finished / "results/summary.json").read_text())
    found = json.loads((run_dir / "results/summary.json").read_text())
    for row in (*expected, *found):
        row.pop("train_seconds")
        row.pop("model")
    assert found == expected

    def names(root: Path) -> set[str]:
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}

    assert names(run_dir) == names(finished)


def test_bad_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", f"--output={tmp_path / 'x'}", "--l0=0"]) == 2
    assert "l0=0" in capsys.readouterr().err
    assert main(["demo", f"--output={tmp_path / 'x'}", "--model=/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
