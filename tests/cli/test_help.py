"""Help: instant, at most a screen and a half, a sentence for every option, near names."""

import subprocess
import sys
from pathlib import Path

import pytest

from sae_lens_bipolar.cli.declared import architectures, constant, options_of
from sae_lens_bipolar.cli.main import COMMANDS, _parser, main
from sae_lens_bipolar.cli.runner_config import parse
from sae_lens_bipolar.cli.sentences import ESSENTIAL, SENTENCES
from sae_lens_bipolar.cli.train import help_page
from sae_lens_bipolar.errors import ConfigError

ROOT = Path(__file__).parents[2]
MOST_LINES = 60


def asked(*words: str) -> str:
    """Standard output of the installed command's entry point, which must not import torch."""
    code = (
        "import sys, time; start = time.process_time()\n"
        "import sae_lens_bipolar_command as command\n"
        f"sys.argv = ['sae-lens-bipolar', *{words!r}]\n"
        "try:\n    command.main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'torch', 'sae_lens', 'transformers'} & set(sys.modules)\n"
        "assert time.process_time() - start < 1, time.process_time() - start\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_instant_and_short(command: str) -> None:
    page = asked(*command.split(), "--help")
    assert page.startswith("usage: sae-lens-bipolar")
    assert "examples:" in page
    assert page.count("\n") <= MOST_LINES


def test_the_version_is_instant() -> None:
    assert asked("--version").count(".") >= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_lacks_its_sentence(command: str) -> None:
    commands = next(action for action in _parser()._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    for action in commands.choices[command]._actions:
        said = getattr(action, "of_suite", action.help)
        assert said, f"{command}: {action.option_strings or action.dest}"
        assert len(said) > 4


@pytest.mark.parametrize("name", sorted(architectures()))
def test_no_option_of_an_architecture_lacks_its_sentence(name: str) -> None:
    for option in options_of(*architectures()[name]).values():
        assert SENTENCES.get(option.name) or option.sentence or option.name == "metadata", option
    page = help_page(["--architecture", name])
    assert page == help_page([f"--architecture={name}"])
    assert page.count("\n") <= MOST_LINES
    assert "--d_sae" in page


def test_no_option_of_the_runner_lacks_its_sentence() -> None:
    runner = options_of("sae_lens.config", "LanguageModelSAERunnerConfig")
    logger = options_of("sae_lens.config", "LoggingConfig")
    for option in {**runner, **logger}.values():
        assert SENTENCES.get(option.name) or option.sentence, option
    assert set(ESSENTIAL) <= {*runner, *logger}
    page = help_page([])
    assert "--config" in page
    assert "--architecture NAME --help" in page
    assert "sign_aware_gated" in page.split("--d_in")[0]  # ours come first
    assert help_page([], everything=True).count("\n") > page.count("\n")


def test_what_is_read_from_the_source_is_what_python_has() -> None:
    from dataclasses import MISSING, fields

    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    from sae_lens_bipolar.cli.demonstration import DemoConfig
    from sae_lens_bipolar.saebench.config import SCALES, BenchConfig

    found = {
        DemoConfig: options_of("sae_lens_bipolar.cli.demonstration", "DemoConfig"),
        BenchConfig: options_of("sae_lens_bipolar.saebench.config", "BenchConfig"),
    }
    for name, place in architectures().items():
        found[SAE_TRAINING_CLASS_REGISTRY[name][1]] = options_of(*place)
    for config, options in found.items():
        known = {field.name: field for field in fields(config)}
        assert set(options) == set(known)
        for name, option in options.items():
            default = known[name].default
            if option.default is not None and default is not MISSING:
                shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
                assert option.default == shown, (config, name)
    assert constant("sae_lens_bipolar.cli.bench", "SCALES") == tuple(SCALES)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["demo", "--d-sea", "4"], "--d-sae"),
        (["bench", "x", "--output", "y", "--suits", "core"], "--suites"),
        (["publsh"], "publish"),
    ],
)
def test_a_misspelt_word_gets_the_near_one(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert f"did you mean '{near}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--architecture", "sign_aware_gated", "-k", "32"], "how many latents fire is l0_target"),
        (["--architecture", "abstopk", "--l0_target", "32"], "how many latents fire is k"),
        (["--architecture", "abstopk", "--trainig_tokens", "9"], "did you mean 'training_tokens'"),
        (["--architecture", "abstop"], "did you mean 'abstopk'"),
    ],
)
def test_train_names_the_option_that_was_meant(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(words)


def test_train_asks_for_a_model_and_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--architecture", "abstopk", "-k", "4", "--d_in", "8", "--d_sae", "16"]
    assert main(words) == 2
    assert "model_name is missing: give --model_name" in capsys.readouterr().err
    assert main([*words, "--model_name", "smollm2-135m-instruct"]) == 2
    assert "dataset_path is missing" in capsys.readouterr().err


def test_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("Python", "sae-lens", "torch", "[bench]", "cpu", "smollm2-135m-instruct", "Hub"):
        assert word in said
