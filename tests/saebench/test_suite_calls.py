"""What each suite hands to SAEBench: every option, followed to the argument that it becomes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.saebench import BenchConfig
from sae_lens_bipolar.saebench.suites import ablation, sparse_probing, unlearning
from sae_lens_bipolar.saebench.suites.registry import SUITES
from tests.saebench.called import Called, called, stand_ins  # noqa: F401

pytest.importorskip("sae_bench")
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig

pytestmark = pytest.mark.usefixtures("stand_ins")
BIOS, AMAZON = "LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5"


def values(host: Any, expected: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(host, name) for name in expected}


@pytest.mark.parametrize(
    ("suite", "options", "expected"),
    [
        (
            "absorption",
            {"max_k": 3, "min_letters": 11, "min_f1": 0.25, "epochs": 8},
            {
                "max_k_value": 3,
                "min_feats_for_eval": 11,
                "min_GT_probe_f1": 0.25,
                "k_sparse_probe_num_epochs": 8,
                "prompt_token_pos": -9,
                "llm_batch_size": 5,
            },
        ),
        (
            "scr",
            {"n": (2, 20, 50), "train_size": 31, "test_size": 17, "epochs": 6, "datasets": (BIOS,)},
            {
                "n_values": [2, 20],
                "train_set_size": 31,
                "test_set_size": 17,
                "probe_epochs": 6,
                "early_stopping_patience": 6,
                "dataset_names": [BIOS],
                "context_length": 96,
                "sae_batch_size": 3,
                "llm_batch_size": 5,
                "perform_scr": True,
            },
        ),
        (
            "tpp",
            {"n": (2, 50), "train_size": 31, "test_size": 17, "epochs": 6},
            {
                "n_values": [2],
                "train_set_size": 31,
                "test_set_size": 17,
                "probe_epochs": 6,
                "dataset_names": [BIOS, AMAZON],
                "context_length": 96,
                "perform_scr": False,
            },
        ),
        (
            "sparse_probing",
            {"k": (1, 10), "train_size": 31, "test_size": 17, "datasets": (BIOS, AMAZON)},
            {
                "k_values": [1, 10],
                "probe_train_set_size": 31,
                "probe_test_set_size": 17,
                "dataset_names": [BIOS, AMAZON],
                "context_length": 96,
                "sae_batch_size": 3,
                "llm_batch_size": 5,
            },
        ),
        (
            "ravel",
            {
                "entities": 9,
                "pairs": 8,
                "downsample": 7,
                "epochs": 6,
                "generated_tokens": 4,
                "batch_size": 2,
            },
            {
                "top_n_entities": 9,
                "num_pairs_per_attribute": 8,
                "num_epochs": 6,
                "full_dataset_downsample": 7,
                "n_generated_tokens": 4,
                "llm_batch_size": 2,
            },
        ),
        (
            "unlearning",
            {"retain": (0.5,), "n": (4,), "multipliers": (3,), "sequences": 12, "length": 600},
            {
                "retain_thresholds": [0.5],
                "n_features_list": [4],
                "multipliers": [3],
                "dataset_size": 12,
                "seq_len": 600,
                "llm_batch_size": 6,
            },
        ),
    ],
)
def test_every_option_reaches_saebench(
    tmp_path: Path, suite: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    prefix = {"scr": "ablation", "tpp": "ablation", "sparse_probing": "probing"}.get(suite, suite)
    given = {f"{prefix}_{name}": value for name, value in options.items()}
    job = called(suite, tmp_path, context_length=96, **given)
    expected |= {"random_seed": 7, "llm_dtype": "bfloat16", "model_name": "tiny"}
    assert values(job.host, expected) == expected


@pytest.mark.parametrize(
    ("suite", "host", "apart"),
    [
        ("absorption", AbsorptionEvalConfig, {"prompt_token_pos"}),
        ("scr", ScrAndTppEvalConfig, {"n_values"}),
        ("tpp", ScrAndTppEvalConfig, {"n_values", "perform_scr"}),
        ("sparse_probing", SparseProbingEvalConfig, set()),
        ("ravel", RAVELEvalConfig, {"artifact_dir"}),
        ("unlearning", UnlearningEvalConfig, {"dataset_names"}),
    ],
)
def test_the_defaults_are_saebenchs_own(
    tmp_path: Path, suite: str, host: type[Any], apart: set[str]
) -> None:
    job = called(suite, tmp_path, seed=42)
    apart = {"model_name", "llm_dtype", "llm_batch_size", "sae_batch_size", *apart}
    found, theirs = vars(job.host), vars(host())
    assert found.keys() == theirs.keys()
    for name in found.keys() - apart:
        assert found[name] == theirs[name] or list(found[name]) == list(theirs[name]), name
    default = BenchConfig()
    assert list(default.ablation_n) == ScrAndTppEvalConfig().n_values
    subjects = ["wmdp-bio", *default.unlearning_datasets]
    assert UnlearningEvalConfig().dataset_names == subjects
    assert default.ravel_batch_size == 16


@pytest.mark.parametrize("suite", ["scr", "tpp", "sparse_probing", "unlearning"])
def test_data_are_read_with_the_trust_and_from_the_folder_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str
) -> None:
    entered: list[Any] = []

    @contextmanager
    def readable(*args: Any) -> Iterator[None]:
        entered.append(args)
        yield
        entered.append("left")

    module = {"sparse_probing": sparse_probing, "unlearning": unlearning}.get(suite, ablation)
    monkeypatch.setattr(module, "readable_data", readable)
    given = {"trust_remote_code": True, "data_folder": str(tmp_path)}
    job = called(suite, tmp_path / "job", entered.copy, **given)
    assert job.found == [(True, str(tmp_path))]
    assert entered == [(True, str(tmp_path)), "left"]


def test_scr_takes_the_first_pairs_and_ablates_no_second_poles(tmp_path: Path) -> None:
    theirs = ScrAndTppEvalConfig().column1_vals_lookup
    for pairs in (1, 3):
        job = called("scr", tmp_path / str(pairs), scr_pairs=pairs, ablation_n=(2, 20))
        assert job.host.column1_vals_lookup == {name: theirs[name][:pairs] for name in theirs}
    assert called("scr", tmp_path / "default").host.column1_vals_lookup == theirs
    for suite, expected in (("scr", [2, 20]), ("tpp", [2, 4, 20, 40])):
        job = Called(tmp_path / suite, ablation_n=(2, 20))
        job.poles = True
        SUITES[suite].run(job)  # type: ignore[arg-type]
        assert job.host.n_values == expected
        assert job.options == {"artifacts_path": str(job.cache)}
