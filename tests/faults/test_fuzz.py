"""More than 2,000 generated inputs: each works, or a BipolarError names what is wrong with it."""

import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sae_lens_bipolar.cli.runner_config import parse
from sae_lens_bipolar.cli.training import train
from sae_lens_bipolar.errors import BipolarError, CheckpointError
from sae_lens_bipolar.runs.checkpoints import load_sae, seal_checkpoint
from tests.architecture_list import ARCHITECTURE_LIST, Entry
from tests.architectures.family import step_input
from tests.faults.fuzz_cases import ConfigCase, configs, copy_of, damage, yaml_files
from tests.hub.published_run import D_IN as RUN_D_IN
from tests.hub.published_run import NAMES, write_run

CONFIGS, YAML_FILES, TRAINED, CHECKPOINTS = 100, 400, 40, 600  # CONFIGS: per architecture
SECONDS = 60  # a case that takes longer hangs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def use(case: ConfigCase, target: Path) -> None:
    """Everything a configuration is for: build, one step, save, load, encode."""
    cfg = case.build()
    sae = SAE_TRAINING_CLASS_REGISTRY[cfg.architecture()][0](cfg)
    torch.manual_seed(0)
    batch = torch.randn(32, cfg.d_in).to(sae.W_dec.dtype)
    if cfg.reshape_activations == "hook_z":
        batch = batch.unsqueeze(1)
    none_dead = torch.zeros(cfg.d_sae, dtype=torch.bool)
    coefficients = dict.fromkeys(sae.get_coefficients(), 1.0)
    one_step = step_input(batch, none_dead)
    one_step = replace(one_step, coefficients=coefficients, is_logging_step=True)
    output = sae.training_forward_pass(one_step)
    output.loss.backward()
    sae.save_inference_model(target)
    saved = load_sae(target)
    saved.encode(batch)


def report(outcomes: Counter[str], wrong: list[str]) -> None:
    print(dict(outcomes))
    assert not wrong, f"{len(wrong)} of {sum(outcomes.values())}:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("entry", ARCHITECTURE_LIST, ids=str)
def test_configurations(entry: Entry, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for case in configs(entry, 1, CONFIGS):
        try:
            with no_hang():
                use(case, tmp_path / "sae")
            outcomes["worked"] += 1
        except BipolarError as error:
            outcomes["refused"] += 1
            if not any(name in str(error) for name in case.drawn):
                wrong.append(f"{case.entry} {case.drawn}: names no field: {error}")
        except Exception as error:
            # abstopk is configured by SAELens's own class, which checks one field by itself.
            if "normalize_activations" in case.drawn and "normalize_activations must" in str(error):
                outcomes["refused by SAELens"] += 1
                continue
            outcomes["other exception"] += 1
            wrong.append(f"{case.entry} {case.drawn}: {type(error).__name__}: {str(error)[:150]}")
    report(outcomes, wrong)


def test_yaml_files(tmp_path: Path, tiny_model_dirs: dict[str, Path], tiny_text: Path) -> None:
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    file, flags = tmp_path / "config.yaml", ["--model_name", str(tiny_model_dirs["gpt2"])]
    flags += ["--dataset_path", str(tiny_text), "--checkpoint_path", str(tmp_path / "checkpoints")]
    for number, case in enumerate(yaml_files(2, YAML_FILES)):
        file.write_bytes(case.text)
        try:
            with no_hang():
                if number % (YAML_FILES // TRAINED) == 0:
                    train([*flags, "--output_path", str(tmp_path / f"out-{number}")], file)
                    outcomes["trained"] += 1
                else:
                    parse(flags, file)
                    outcomes["parsed"] += 1
        except BipolarError as error:
            outcomes["refused"] += 1
            said = str(error)
            names = [*case.changed, *(name.removeprefix("--") for name in case.changed)]
            if any(names) and not any(name in said for name in names if name):
                wrong.append(f"{case.changed}: not named: {said[:200]}")
        except (Exception, SystemExit) as error:
            outcomes["other exception"] += 1
            lines = case.text.decode(errors="replace").splitlines()
            shown = [line for line in lines if any(name in line for name in case.changed)]
            wrong.append(f"{case.changed} {shown[:2]}: {type(error).__name__}: {str(error)[:200]}")
    report(outcomes, wrong)


def test_checkpoints(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    run_dir, draw = write_run(tmp_path / "run"), random.Random(3)
    batch = torch.randn(8, RUN_D_IN)
    for number in range(CHECKPOINTS):
        name, is_sealed = NAMES[number % len(NAMES)], number % 4 == 0
        path = copy_of(run_dir / "checkpoints" / name, tmp_path / "sae")
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        if is_sealed:
            seal_checkpoint(path)
        what = damage(path, draw)
        try:
            with no_hang():
                found: Any = load_sae(path).encode(batch)
            outcomes["loaded"] += 1
            after = {f.name: f.read_bytes() for f in path.iterdir() if f.name in before}
            if is_sealed and before != after:
                wrong.append(f"{name}, sealed: {what}: loaded all the same")
            del found
        except CheckpointError as error:
            outcomes["refused"] += 1
            if str(path) not in str(error):
                wrong.append(f"{name}: {what}: does not name the checkpoint: {error}")
        except Exception as error:
            outcomes["other exception"] += 1
            wrong.append(f"{name}: {what}: {type(error).__name__}: {str(error)[:200]}")
    report(outcomes, wrong)
