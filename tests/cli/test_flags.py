"""Every training flag of the installed SAELens is honoured, or refused by name."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

import sae_lens_bipolar  # noqa: F401
from sae_lens_bipolar.cli import flags as table
from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.cli.runner_config import parse
from sae_lens_bipolar.cli.training import sweep_of
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.inputs.models import load_model
from sae_lens_bipolar.runs.sweep_config import runner_config

HOOK = "blocks.0.hook_mlp_out"
# A value other than the default for every flag of SAELens's runner and logger.
OTHER: dict[str, str] = {
    "model_name": "gpt2",
    "model_class_name": "HookedMamba",
    "model_kwargs": '{"a":1}',
    "hook_name": "blocks.1.hook_mlp_out",
    "hook_eval": "x",
    "hook_head_index": "1",
    "model_from_pretrained_kwargs": '{"dtype": "bfloat16"}',
    "from_pretrained_path": "x",
    "dataset_path": "sotu",
    "dataset_trust_remote_code": "true",
    "streaming": "false",
    "is_dataset_tokenized": "true",
    "use_chat_formatting": "true",
    "context_size": "24",
    "disable_concat_sequences": "false",
    "sequence_separator_token": "eos",
    "prepend_bos": "false",
    "use_cached_activations": "true",
    "cached_activations_path": "x",
    "n_batches_in_buffer": "9",
    "store_batch_size_prompts": "5",
    "seqpos_slice": "1 9",
    "activations_mixing_fraction": "0.25",
    "exclude_special_tokens": "true",
    "n_batches_for_norm_estimate": "7",
    "prefetch_llm_batches": "true",
    "device": "cpu",
    "llm_device": "meta",
    "act_store_device": "meta",
    "dtype": "float64",
    "autocast": "true",
    "autocast_lm": "true",
    "compile_llm": "true",
    "llm_compilation_mode": "default",
    "compile_sae": "true",
    "sae_compilation_mode": "default",
    "training_tokens": "999",
    "train_batch_size_tokens": "33",
    "adam_beta1": "0.5",
    "adam_beta2": "0.75",
    "lr": "0.5",
    "lr_scheduler_name": "cosineannealing",
    "lr_warm_up_steps": "3",
    "lr_end": "0.01",
    "lr_decay_steps": "4",
    "n_restart_cycles": "2",
    "dead_feature_window": "17",
    "feature_sampling_window": "19",
    "dead_feature_threshold": "0.1",
    "seed": "7",
    "n_eval_batches": "3",
    "eval_batch_size_prompts": "6",
    "n_checkpoints": "2",
    "checkpoint_path": "elsewhere",
    "save_final_checkpoint": "true",
    "output_path": "out",
    "resume_from_checkpoint": "x",
    "verbose": "false",
    "sae_lens_version": "1",
    "sae_lens_training_version": "1",
    "log_to_wandb": "true",
    "log_activations_store_to_wandb": "true",
    "log_optimizer_state_to_wandb": "true",
    "log_weights_to_wandb": "false",
    "wandb_project": "p",
    "wandb_id": "i",
    "run_name": "r",
    "wandb_entity": "e",
    "wandb_log_frequency": "2",
    "eval_every_n_wandb_logs": "5",
}
K = ["--architecture", "abstopk", "-k", "4"]
GIVEN = ["--d_in", "32", "--d_sae", "48"]
GIVEN += ["--dataset_path", "./text.jsonl", "--context_size", "16", "--training_tokens", "512"]
GIVEN += ["--train_batch_size_tokens", "32"]
RUNNER_FLAGS = [name for name in table.runner_flags() if name not in ("sae", "logger")]
# Where a value goes that is no field of the sweep's configuration of the same name.
SPECIAL = {
    **dict.fromkeys(("from_pretrained_path", "output_path", "checkpoint_path"), "tested below"),
    **dict.fromkeys(("hook_name", "hook_head_index", "dtype", "n_eval_batches"), "tested below"),
    "model_from_pretrained_kwargs": "tested below",
    "model_class_name": "refused",
    "save_final_checkpoint": "tested below",
}


def asked(*flags: str, data: str = "./text.jsonl") -> tuple[Any, Any]:
    kind = [] if "--architecture" in flags else K
    given = [*kind, *GIVEN, "--dataset_path", data, *flags]
    return sweep_of(parse(given), table.named(given))


@cache
def unchanged(data: str) -> tuple[Any, Any]:
    return asked(data=data)


def test_every_flag_of_the_installed_saelens_is_decided() -> None:
    undecided = {*table.runner_flags()} - table.RUNNER.keys()
    assert not undecided, f"new flags of SAELens, to be decided in cli/flags.py: {undecided}"
    assert table.RUNNER.keys() == {*table.runner_flags()}, "flags that SAELens no longer has"
    assert OTHER.keys() == {*RUNNER_FLAGS}
    own = {
        name
        for name, (_, config) in SAE_TRAINING_CLASS_REGISTRY.items()
        if config.__module__.split(".")[0] in ("sae_lens", "sae_lens_bipolar")
    }
    assert len(own) >= 16
    undecided = {*table.sae_flags()} - {*table.SAE} - table.SAE_REFUSED.keys()
    assert not undecided, f"new options, to be decided in cli/flags.py: {undecided}"


# Both kinds of data only where they differ: parsing SAELens's flags takes its time.
CASES = [(name, True) for name in RUNNER_FLAGS] + [(name, False) for name in table.LOCAL]


@pytest.mark.parametrize(("name", "local"), CASES)
def test_each_flag_is_honoured_or_refused(name: str, local: bool) -> None:
    data = "./text.jsonl" if local else "owner/data"
    other = OTHER[name]
    if name == "disable_concat_sequences" and not local:
        other = "true"
    flags = [f"--{name}", *other.split(" ")]
    if name == "use_chat_formatting":
        flags += ["--is_dataset_tokenized", "false"]
    decision = table.decide(name, local)
    if decision.only is not table.ANY or not decision.to:
        with pytest.raises(ConfigError, match=rf"{name}=.* is not allowed in train: \w+"):
            asked(*flags, data=data)
        return
    room, _, field = decision.to.partition(".")
    if room not in ("sweep", "options", "logger"):
        assert name in SPECIAL
        return
    if name == "save_final_checkpoint":
        flags += ["--checkpoint_path", "elsewhere"]
    if name == "dataset_path":
        config, _ = asked(data="sotu")
        assert config.corpus == "sotu"
        return
    before, _ = unchanged(data)
    config, _ = asked(*flags, data=data)

    def value(of: Any) -> Any:
        rooms = {"sweep": vars(of), "options": of.options, "logger": of.options["logger"]}
        return rooms[room].get(field)

    assert str(value(config)).lower() in (other, f"({other.replace(' ', ', ')})")
    if name not in ("device",):  # there is one device here
        assert value(config) != value(before), "the value must differ from the default"


def test_options_reach_the_runner_of_saelens(tiny_model_dirs: dict[str, Path]) -> None:
    """What the sweep carries is what SAELens's own runner is configured with."""
    names = [n for n in RUNNER_FLAGS if table.decide(n, True).to.startswith("options.")]
    names.remove(
        "is_dataset_tokenized"
    )  # checked as the data is read, and of no runner for several
    flags = [
        word
        for name in names
        if name not in ("llm_device", "act_store_device", "save_final_checkpoint")
        for word in (f"--{name}", *OTHER[name].split(" "))
    ]
    config, sae = asked(*flags, "--wandb_project", "p", "--log_to_wandb", "true")
    cfg = runner_config(config, {"a": sae}, load_model(str(tiny_model_dirs["gpt2"])))
    for name in names:
        assert getattr(cfg, name) == config.options[name], name
    assert (cfg.logger.log_to_wandb, cfg.logger.wandb_project) == (True, "p")
    assert cfg.sequence_separator_token is None  # what is done with local text
    assert cfg.disable_concat_sequences is True


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (["--lr", "1"], {"lr"}),
        (["--lr=1"], {"lr"}),
        (["--sequence-separator-token", "eos"], {"sequence_separator_token"}),
        (["--sequence_sep", "eos"], {"sequence_separator_token"}),
        (["--nostreaming"], {"streaming"}),
        (["--architecture", "abstopk"], {"sae"}),
        (["--sae.dtype", "float32"], {"sae.dtype"}),
        (["-k", "4"], {"k"}),
        (["-k4"], {"k"}),
        (["--seed", "-1"], {"seed"}),
    ],
)
def test_flags_are_recognised_however_they_are_written(written: list[str], found: set[str]) -> None:
    assert table.named(written) == found


def test_what_is_done_anyway_may_be_said() -> None:
    config, _ = asked("--streaming", "true")
    assert "streaming" not in config.options


def test_every_option_of_every_architecture_reaches_the_sae() -> None:
    seen = set()
    for architecture, (_, config_class) in SAE_TRAINING_CLASS_REGISTRY.items():
        needed: dict[str, Any] = (
            {"matryoshka_widths": [8, 128]} if "matryoshka" in architecture else {}
        )
        base = config_class(d_in=32, d_sae=128, **needed)
        given, expected = ["--architecture", architecture], {}
        for flag, name in table.sae_flags().items():
            if not hasattr(base, name) or flag in table.SAE_REFUSED:
                continue
            if (architecture, name) == ("matryoshka_batch_abstopk", "reshape_activations"):
                continue
            if name == "use_sparse_activations":  # some have sparse arithmetic of their own
                assert _sparse_activations(architecture) in (True, "refused by name")
                seen.add(flag)
                continue
            if (architecture, flag) in table.SAE_FORCED:
                with pytest.raises(ConfigError, match=rf"{flag}=.* is not allowed"):
                    asked("--architecture", architecture, f"--{flag}", "0.5")
                continue
            other = expected[name] = _another(name, getattr(base, name))
            assert other != getattr(base, name), (architecture, name)
            # By themselves: with one side nothing is symmetric, an L0 target excludes a warm-up
            # and nested prefixes decode flat activations.
            if name in ("two_sided_gate", "l1_warm_up_steps", "l0_warm_up_steps"):
                alone = parse(["--architecture", architecture, f"--{flag}", str(other)])
                assert getattr(alone.sae, name) == expected.pop(name)
                seen.add(flag)
                continue
            words = other if isinstance(other, list) else [other]
            given += [f"{'-' if len(flag) == 1 else '--'}{flag}", *map(str, words)]
            seen.add(flag)
        given += ["--dataset_path", "./text.jsonl"]
        cfg = parse(given)
        sweep_of(cfg, table.named(given))
        assert {name: getattr(cfg.sae, name) for name in expected} == expected, architecture
    assert seen == {*table.SAE}


def _sparse_activations(architecture: str) -> bool | str:
    """The value that `--use_sparse_activations true` sets, or whether it is refused by its name."""
    flags = ["--architecture", architecture, "--use_sparse_activations", "true"]
    if "matryoshka" in architecture:
        flags += ["--matryoshka_widths", "8", "1024"]
    try:
        return vars(parse(flags).sae)["use_sparse_activations"]
    except ConfigError as error:
        named = "use_sparse_activations=True is not allowed" in str(error)
        return "refused by name" if named else str(error)


def _another(name: str, default: Any) -> Any:
    chosen: dict[str, Any] = {
        "normalize_activations": "expected_average_only_in",
        "reshape_activations": "hook_z",
        "dtype": "float64",
        "symmetry": "gain",
        "b_dec_init": "zeros",  # the data's mean is the default
        "d_in": 31,
        "d_sae": 64,
        "jumprelu_sparsity_loss_mode": "tanh",
        "k": 5,
        "matryoshka_widths": [8, 24, 64],
        "target_l0": 3.0,
        "l0_target": 5.0,
        "threshold_init_l0": 5.0,
        "n_steps": 3,
        "max_iterations": 7,
        "initial_b_negative": 0.25,
    }
    if name in chosen:
        return chosen[name]
    if isinstance(default, bool):
        return not default
    return (default or 0) + 1 if isinstance(default, int) else (default or 0.0) + 0.0625


def test_sae_device_and_metadata_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sae\.device"):
        asked("--sae.device", "meta")


@pytest.fixture
def words(tiny_model_dirs: dict[str, Path], tiny_text: Path, tmp_path: Path) -> list[str]:
    return [
        *("train", "--architecture", "abstopk", "-k", "4", "--d_sae", "48"),
        *("--model_name", str(tiny_model_dirs["gpt2"]), "--dataset_path", str(tiny_text)),
        *("--context_size", "16", "--training_tokens", "256", "--train_batch_size_tokens", "32"),
        *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--lr", "0.003"),
        *("--d_in", "32", "--hook_name", HOOK, "--output_path", str(tmp_path / "out")),
    ]


def row(output: Path) -> dict[str, Any]:
    (found,) = json.loads((output / "results/summary.json").read_text())
    return found


def test_the_special_flags_have_their_effect(words: list[str], tmp_path: Path) -> None:
    more = ["--n_eval_batches", "3", "--eval_batch_size_prompts", "5", "--dtype", "float64"]
    more += ["--model_from_pretrained_kwargs", '{"dtype": "bfloat16"}', "--prepend_bos", "false"]
    more += ["--checkpoint_path", str(tmp_path / "kept"), "--n_checkpoints", "2"]
    more += ["--save_final_checkpoint", "true"]
    assert main([*words, *more]) == 0
    found = row(tmp_path / "out")
    assert found["n_eval_tokens"] + found["n_sink_tokens"] == 3 * 5 * 16
    cfg = json.loads((tmp_path / "out/checkpoints/abstopk/cfg.json").read_text())
    assert cfg["dtype"] == "float64"
    assert cfg["metadata"]["prepend_bos"] is False
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["llm_dtype"] == "bfloat16"
    kept = tmp_path / "kept/out"
    assert sorted(path.name for path in kept.iterdir()) == ["192", "96", "final_256"]
    assert (kept / "96/sae_weights.safetensors").is_file()
    assert (kept / "96/activation_scaler.json").is_file()
    assert not (tmp_path / "out/progress").exists()


def test_a_configuration_written_by_saelens_is_read_the_same_way() -> None:
    """Defaults that are spelt out are no request: SAELens's own to_dict may be a YAML file."""
    default = LanguageModelSAERunnerConfig(sae=parse([*K, *GIVEN]).sae)
    flags = [f"--{n}={getattr(default, n)}" for n in ("verbose", "compile_sae", "hook_eval")]
    asked(*flags)


def test_the_mixing_buffer_holds_a_step_unless_it_is_given() -> None:
    config, _ = asked(
        "--training_tokens", "8192", "--train_batch_size_tokens", "4096", "--context_size", "128"
    )
    assert config.n_batches_in_buffer == 32  # SAELens's default is 20
    config, _ = asked("--train_batch_size_tokens", "512", "--context_size", "128")
    assert config.n_batches_in_buffer == 20
    with pytest.raises(ConfigError, match="n_batches_in_buffer=4 is not allowed"):
        asked(
            "--training_tokens",
            "8192",
            "--train_batch_size_tokens",
            "4096",
            "--n_batches_in_buffer",
            "4",
        )
