"""`sae-lens-bipolar train` on tiny models of each architecture, at each kind of hook."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens import SAE

from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.cli.runner_config import parse
from sae_lens_bipolar.errors import ConfigError
from tests.tiny_models import TINY_ARCHITECTURES

HOOKS = {
    "resid": "blocks.1.hook_resid_post",
    "mlp": "blocks.0.hook_mlp_out",
    "attn": "blocks.0.hook_attn_out",
}
WIDTH = {
    "abstopk": ["-k", "4"],
    "sign_aware_gated": ["--l0_target", "4", "--threshold_init_l0", "4"],
}


def flags(model: Path, text: Path, output: Path, hook_name: str, d_in: int) -> list[str]:
    return [
        *("--model_name", str(model), "--dataset_path", str(text), "--hook_name", hook_name),
        *("--d_in", str(d_in), "--d_sae", "48", "--context_size", "16", "--training_tokens", "256"),
        *("--train_batch_size_tokens", "32", "--store_batch_size_prompts", "4"),
        *("--n_batches_in_buffer", "8", "--output_path", str(output), "--lr", "0.003"),
    ]


def d_model(model: Path) -> int:
    config = json.loads((model / "config.json").read_text())
    return config.get("hidden_size") or config["n_embd"]


# Every model at one hook with both architectures, and every hook on the smallest model.
CASES = [(name, "mlp") for name in TINY_ARCHITECTURES] + [("gpt2", "resid"), ("gpt2", "attn")]


@pytest.mark.parametrize("architecture", ["abstopk", "sign_aware_gated"])
@pytest.mark.parametrize(("model_name", "hook"), CASES)
def test_trains_from_a_local_model_and_local_text(
    tiny_model_dirs: dict[str, Path],
    tiny_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model_name: str,
    hook: str,
    architecture: str,
) -> None:
    model = tiny_model_dirs[model_name]
    arguments = flags(model, tiny_text, tmp_path / "out", HOOKS[hook], d_model(model))
    code = main(["train", "--architecture", architecture, *arguments, *WIDTH[architecture]])
    printed = capsys.readouterr()
    assert code == 0, printed.err[-2000:]
    sae = SAE.load_from_disk(tmp_path / "out/checkpoints" / architecture)
    assert sae.cfg.architecture() == architecture
    assert sae.cfg.metadata.hook_name == HOOKS[hook]
    assert "loss recovered" in printed.out
    assert printed.out.splitlines()[-1] == f"saved: {tmp_path}/out/checkpoints/{architecture}"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["abstopk", "sign_aware_gated"])
@pytest.mark.parametrize("hook", ["resid", "attn"])
@pytest.mark.parametrize("model_name", [name for name in TINY_ARCHITECTURES if name != "gpt2"])
def test_trains_at_the_other_hooks_too(
    tiny_model_dirs: dict[str, Path],
    tiny_text: Path,
    tmp_path: Path,
    model_name,
    hook,
    architecture,
) -> None:
    model = tiny_model_dirs[model_name]
    arguments = flags(model, tiny_text, tmp_path / "out", HOOKS[hook], d_model(model))
    assert main(["train", "--architecture", architecture, *arguments, *WIDTH[architecture]]) == 0
    assert (
        SAE.load_from_disk(tmp_path / "out/checkpoints" / architecture).cfg.architecture()
        == architecture
    )


def test_a_yaml_file_says_the_same_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    options = {
        "architecture": "sign_aware_gated",
        "hook_name": "blocks.1.hook_mlp_out",
        "seqpos_slice": [1, None],
        "training_tokens": 5000,
        "lr": 1e-4,
        "prepend_bos": False,
        "output_path": None,
        "sae": {"d_in": 32, "d_sae": 64, "symmetry": "gain", "l0_target": 8.0, "dtype": "float64"},
    }
    options["seqpos_slice"] = [1, 12]
    file.write_text(yaml.safe_dump(options))
    cfg = parse(["--lr", "0.5", "--d_sae", "128"], file)
    assert cfg.sae.architecture() == "sign_aware_gated"
    sae: Any = cfg.sae
    assert (sae.d_in, sae.d_sae, sae.symmetry, sae.l0_target) == (
        32,
        128,
        "gain",
        8.0,
    )  # type: ignore[attr-defined]
    assert (cfg.hook_name, cfg.training_tokens, cfg.lr) == ("blocks.1.hook_mlp_out", 5000, 0.5)
    assert cfg.prepend_bos is False
    assert cfg.sae.dtype == "float64"
    assert tuple(cfg.seqpos_slice) == (1, 12)


def test_remote_code_and_wandb_are_off_unless_asked_for() -> None:
    cfg = parse(["--architecture", "abstopk"])
    assert cfg.dataset_trust_remote_code is False
    assert cfg.logger.log_to_wandb is False
    cfg = parse(["--architecture", "abstopk", "--log_to_wandb", "true"])
    assert cfg.logger.log_to_wandb is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("a: [", "cannot be read as YAML"),
        ("- a\n- b", "holds list"),
        ("sae: 3", "expected the architecture's options"),
    ],
)
def test_bad_yaml_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        parse([], file)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--architecture", "abstop"], "did you mean 'abstopk'"),
        (["--architecture", "abstopk", "-k", "0"], "k=0"),
        (["--architecture", "abstopk", "-k", "49"], r"k=49"),
        (["--architecture", "abstopk", "-k", "4", "--d_in", "31"], "has width 32"),
        (
            ["--architecture", "abstopk", "-k", "4", "--hook_name", "blocks.0.mlp_out"],
            "did you mean 'blocks.0.hook_mlp_out'",
        ),
        (
            ["--architecture", "abstopk", "-k", "4", "--model_name", "/nowhere/model"],
            "/nowhere/model",
        ),
        (["--architecture", "sign_aware_gated", "--l0_target", "99"], "l0_target=99"),
        (["--architecture", "abstopk", "--training_tokenz", "5"], "training_tokenz"),
        (["--architecture", "abstopk", "-k", "4", "--lr", "0"], "lr=0.0"),
        (["--architecture", "abstopk", "-k", "4", "--adam_beta2", "1"], "adam_beta2=1.0"),
        (["--architecture", "abstopk", "-k", "4", "--dtype", "float31"], "dtype='float31'"),
        (["--architecture", "abstopk", "-k", "4", "--device", "nonsense"], "device='nonsense'"),
        (["--architecture", "abstopk", "-k", "4", "--training_tokens", "0"], "training_tokens=0"),
        (
            ["--architecture", "abstopk", "-k", "4", "--training_tokens", "31"],
            "less than one batch",
        ),
    ],
)
def test_bad_input_exits_with_2_and_says_what(
    tiny_model_dirs: dict[str, Path],
    tiny_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    words: str,
) -> None:
    arguments = flags(tiny_model_dirs["gpt2"], tiny_text, tmp_path / "out", HOOKS["mlp"], 32)
    assert main(["train", *arguments, *extra]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_without_a_text_column_lists_the_columns(
    tiny_model_dirs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"title": 3, "body": 4}) + "\n")
    arguments = flags(tiny_model_dirs["gpt2"], data, tmp_path / "out", HOOKS["mlp"], 32)
    assert main(["train", "--architecture", "abstopk", "-k", "4", *arguments]) == 2
    message = capsys.readouterr().err
    assert "title" in message
    assert "body" in message
