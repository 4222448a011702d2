"""Adding an architecture is one file, one record, one entry in the tests' list: here it is done."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

FILE = '''\
"""Signed soft thresholding with a learned threshold per latent."""

from dataclasses import dataclass

from sae_lens import SAEConfig, StandardSAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens import TrainingSAE, TrainingSAEConfig
from torch import nn

from sae_lens_bipolar import Architecture, Sides
from sae_lens_bipolar.architectures.training.checks import check_fields


@dataclass
class ToySAEConfig(SAEConfig):
    @classmethod
    def architecture(cls):
        return "toy"


class ToySAE(StandardSAE):
    def initialize_weights(self):
        super().initialize_weights()
        self.log_threshold = nn.Parameter(self.b_enc.detach() - 1.0)

    def encode_with_hidden_pre(self, x):
        u = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        t = self.log_threshold.exp()
        return self.hook_sae_acts_post((u - t).relu() - (-u - t).relu()), u

    def encode(self, x):
        return self.encode_with_hidden_pre(x)[0]

    def fold_W_dec_norm(self):
        self.log_threshold.data.add_(self.fold_and_get_W_dec_norm().log())


@dataclass
class ToyTrainingSAEConfig(TrainingSAEConfig):
    l1_coefficient: float = 0.1
    decoder_init_norm: float | None = 1.0

    @classmethod
    def architecture(cls):
        return "toy"

    def __post_init__(self):
        check_fields(self)
        super().__post_init__()


class ToyTrainingSAE(ToySAE, TrainingSAE):
    def get_coefficients(self):
        return {"l1": self.cfg.l1_coefficient}

    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        l1 = (feature_acts.abs() @ self.W_dec.norm(dim=1)).mean()
        return {"l1_loss": step_input.coefficients["l1"] * l1}
'''

RECORD = """

def sides(sae):
    t = sae.log_threshold.exp()
    return Sides(bias=(sae.b_enc - t, -sae.b_enc - t), threshold=(0 * t, 0 * t))


RECORD = Architecture(
    name="toy",
    title="Soft thresholding of both sides",
    formula="u    = (x - b_dec) W_enc + b_enc\\n"
    "z    = relu(u - t) - relu(-u - t)    with t = exp(log_threshold)\\n"
    "x̂    = z W_dec + b_dec",
    source="a test",
    cites=("@misc{toy,\\n  title = {A toy}\\n}",),
    signed=True,
    training=(ToyTrainingSAE, ToyTrainingSAEConfig),
    inference=(ToySAE, ToySAEConfig),
    sides=sides,
    at_l0=lambda d_sae, l0: {},
    timed_beside=(StandardTrainingSAE, StandardTrainingSAEConfig),
)
"""

ENTRY = """\
from sae_lens import JumpReLUSAE

import sae_lens_bipolar
import toy
from tests.architecture_list import ARCHITECTURE_LIST, Entry

sae_lens_bipolar.register(toy.RECORD)
ARCHITECTURE_LIST.append(
    Entry(
        name="toy",
        config=toy.ToyTrainingSAEConfig,
        saved_as="toy",
        splits_into=JumpReLUSAE,
    )
)
"""

FAMILY = (
    "test_language_model_runner",
    "test_synthetic_runner",
    "test_toy_training",
    "test_checkpoint_and_resume",
    "test_save_and_load",
    "test_configurations_survive_dictionaries",
    "test_folding_decoder_norms",
    "test_folding_normalisation",
    "test_autocast",
    "test_compiled_steps_equal_eager_ones",
    "test_hooked_sae_transformer",
    "test_polarity_split",
    "test_census",
    "test_the_record",
)
ELSEWHERE = ("test_configurations", "test_the_card_shows_the_record", "test_contestant")
FILES = (
    "tests/architectures/test_every_architecture.py",
    "tests/faults/test_fuzz.py",
    "tests/hub/test_card.py",
    "tests/recipes/speed/test_contestants.py",
)


def run_tests(tmp_path: Path, record: str) -> dict[str, str]:
    """The outcome of every test of the toy, by name: "passed", or what it failed with."""
    (tmp_path / "toy.py").write_text(FILE + record, encoding="utf-8")
    (tmp_path / "toy_entry.py").write_text(ENTRY, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "toy_entry", "-k", "toy and not compile_sae"]
    command += ["-m", "", "-q", "-n0", f"--junitxml={tmp_path}/report.xml", *FILES]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (tmp_path / "report.xml").exists(), done.stdout + done.stderr
    outcomes = {}
    for case in ElementTree.parse(tmp_path / "report.xml").iter("testcase"):
        problem = next(iter(case), None)
        outcomes[str(case.get("name"))] = "passed" if problem is None else problem.tag
    return outcomes


@pytest.mark.timeout(900)
def test_a_toy_architecture_passes_every_test_of_the_family(tmp_path: Path) -> None:
    """In a process of its own, so that nothing is left to undo here."""
    assert len(FILE.splitlines()) < 60
    outcomes = run_tests(tmp_path, RECORD)
    wanted = {f"{name}[toy]" for name in (*FAMILY, *ELSEWHERE)}
    assert wanted <= outcomes.keys()
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} == set()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fact", "misspelt", "caught_by"),
    [
        ("signed=True", "signed=False", "test_polarity_split[toy]"),
        ("-sae.b_enc - t)", "-sae.b_enc + t)", "test_polarity_split[toy]"),
        ("    sides=sides,\n", "", "test_polarity_split[toy]"),
        ("lambda d_sae, l0: {}", "lambda d_sae, l0: {'k': l0}", "test_the_record[toy]"),
    ],
)
def test_a_wrong_fact_fails_a_test_by_name(
    tmp_path: Path, fact: str, misspelt: str, caught_by: str
) -> None:
    assert fact in RECORD
    outcomes = run_tests(tmp_path, RECORD.replace(fact, misspelt))
    assert outcomes[caught_by] == "failure"
