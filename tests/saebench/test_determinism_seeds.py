"""The same seed gives the same JSON twice: without a cache, with one, and after another SAE."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.saebench import bench
from sae_lens_bipolar.saebench.suites.registry import SUITES
from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config

_VARYING = ("eval_id", "datetime_epoch_millis")


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("determinism")
    model_dir = save_bench_model(root / "gpt2", "gpt2")
    return {
        name: save_bench_sae(root / name, bench_sae("abstopk", model_dir, seed=seed))
        for seed, name in enumerate(("first", "second"))
    }


def measured(
    paths: Sequence[Path], output: Path, suites: tuple[str, ...], **changes: Any
) -> dict[str, Any]:
    """SAEBench's own JSON of each suite and protocol for the SAE called `second`."""
    outcome = bench([*paths], output, tiny_config(suites=suites, protocols=("split",), **changes))
    assert outcome.not_run == []
    found = {}
    for suite in suites:
        (file,) = (output / "saebench" / suite / "split" / "second").glob("*_eval_results.json")
        found[suite] = json.loads(file.read_text())
        for name in _VARYING:
            del found[suite][name]
        found[suite]["eval_config"].pop("artifact_dir", None)  # RAVEL's cache, inside `output`
    return found


def check(saes: dict[str, Path], tmp_path: Path, suites: tuple[str, ...]) -> None:
    cold = measured([saes["second"]], tmp_path / "cold", suites)
    # `first` fills the cache, `second` reads it
    warm = measured([saes["first"], saes["second"]], tmp_path / "warm", suites)
    assert warm == cold


def test_two_runs_agree(saes: dict[str, Path], tmp_path: Path, suite_hub: HubServer) -> None:
    check(saes, tmp_path, ("absorption", "scr"))


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_two_runs_agree_in_every_suite(
    suite: str, saes: dict[str, Path], tmp_path: Path, suite_hub: HubServer
) -> None:
    check(saes, tmp_path, (suite,))
    again = measured([saes["second"]], tmp_path / "again", (suite,))
    other = measured([saes["second"]], tmp_path / "other", (suite,), seed=7)[suite]
    cold = measured([saes["second"]], tmp_path / "cold", (suite,))  # from its files
    assert again == cold
    if suite in ("absorption", "scr", "tpp", "sparse_probing"):  # finely graded on a tiny model
        assert other["eval_result_metrics"] != cold[suite]["eval_result_metrics"]
