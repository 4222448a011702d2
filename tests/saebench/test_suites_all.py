"""Every architecture, and every family of language models, through every suite."""

import math
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.saebench import bench
from sae_lens_bipolar.saebench.suites.registry import SUITES
from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import (
    ARCHITECTURES,
    bench_sae,
    save_bench_model,
    save_bench_sae,
    tiny_config,
)
from tests.tiny_models import TINY_ARCHITECTURES

pytestmark = pytest.mark.slow


def assert_complete(paths: list[str | Path], output: Path, **changes: Any) -> None:
    outcome = bench(paths, output, tiny_config(**changes))
    assert outcome.not_run == []
    found = {
        (row["sae"], row["suite"], row["protocol"], row["metric"], row["budget"])
        for row in outcome.rows
        if math.isfinite(row["value"])
    }
    for path in paths:
        for suite in SUITES:
            main = SUITES[suite].headline
            for protocol in ("signed", "split"):
                assert (Path(path).name, suite, protocol, main.metric, main.budget) in found


def test_every_architecture(tmp_path: Path, suite_hub: HubServer) -> None:
    model_dir = save_bench_model(tmp_path / "gpt2", "gpt2")
    names = [*ARCHITECTURES, "unrolled_abstopk"]
    assert_complete(
        [save_bench_sae(tmp_path / name, bench_sae(name, model_dir)) for name in names],
        tmp_path / "out",
    )


@pytest.mark.parametrize("family", [name for name in TINY_ARCHITECTURES if name != "gpt2"])
def test_every_model_family(family: str, tmp_path: Path, suite_hub: HubServer) -> None:
    model_dir = save_bench_model(tmp_path / family, family)
    sae = save_bench_sae(tmp_path / "abstopk", bench_sae("abstopk", model_dir))
    # With fewer pairs those of the random Gemma 2 can all begin with one token: none to change.
    assert_complete([sae], tmp_path / "out", ravel_pairs=48)
