"""After any suite, also one that raises in the middle, the process is as it was before."""

import importlib
import os
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config

pytest.importorskip("sae_bench")
from sae_bench.evals.ravel.instance import RAVELInstance
from sae_bench.evals.ravel.mdbm import MDBM
from sae_lens.saes.abstopk_sae import AbsTopKSAE
from transformer_lens import HookedTransformer

from sae_lens_bipolar.saebench import bench
from sae_lens_bipolar.saebench.host import llm
from sae_lens_bipolar.saebench.host.isolation import isolated
from sae_lens_bipolar.saebench.suites.registry import SUITES


class Loaded(llm.LanguageModel):
    """The loader, remembering what it loaded."""

    last: "Loaded"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.hooked.train()  # a mode that a restored model keeps
        type(self).last = self


@pytest.fixture(scope="module")
def sae_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("context")
    model_dir = save_bench_model(root / "gpt2", "gpt2")
    return save_bench_sae(root / "abstopk", bench_sae("abstopk", model_dir))


def attributes() -> dict[str, dict[str, int]]:
    """Identity of every attribute of SAEBench's modules, and of the classes that are replaced."""
    owners: dict[str, Any] = {
        name: module for name, module in sys.modules.items() if name.startswith("sae_bench.")
    }
    owners |= {kind.__name__: kind for kind in (HookedTransformer, MDBM, RAVELInstance)}
    return {name: {key: id(x) for key, x in vars(owner).items()} for name, owner in owners.items()}


def process() -> dict[str, Any]:
    return {
        "grad": torch.is_grad_enabled(),
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "streams": (sys.stdout, sys.stderr),
        "readers": (torch.load, torch.save, torch.serialization.load, pickle.load),
    }


def import_suites() -> None:
    for suite in SUITES.values():
        importlib.import_module(suite.host)


@pytest.fixture(params=[True, False], ids=["grad", "no-grad"])
def grad_mode(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(request.param)
    yield
    torch.set_grad_enabled(before)


def run(sae_path: Path, tmp_path: Path, suite: str) -> Any:
    # Read from its cache, so that only the suite itself can change the process.
    return bench([sae_path], tmp_path / "out", tiny_config(suites=(suite,), protocols=("signed",)))


def assert_model_is_clean() -> None:
    model = Loaded.last
    assert all(part.training for part in model.hooked.modules())
    assert model.hooked.cfg.model_name == model.alias
    assert "run_with_cache" not in vars(model.hooked)
    assert not any(hook.fwd_hooks for hook in model.hooked.hook_dict.values())
    if "transformers" in vars(model):
        assert not any(part._forward_hooks for part in model.transformers.modules())
        assert not any(part.training for part in model.transformers.modules())


@pytest.mark.parametrize("suite", ["scr"])
def test_nothing_is_left_changed(
    suite: str, sae_path: Path, tmp_path: Path, suite_hub: HubServer, monkeypatch: Any
) -> None:
    _check(suite, sae_path, tmp_path, monkeypatch, raises_at=None)


@pytest.mark.parametrize("suite", SUITES)
def test_nothing_is_left_changed_by_a_suite_that_raises(
    suite: str, sae_path: Path, tmp_path: Path, suite_hub: HubServer, monkeypatch: Any
) -> None:
    _check(suite, sae_path, tmp_path, monkeypatch, raises_at=3)


@pytest.mark.slow
@pytest.mark.usefixtures("grad_mode")
@pytest.mark.parametrize("raises_at", [None, 1, 3])  # core encodes three times in all
@pytest.mark.parametrize("suite", SUITES)
def test_nothing_is_left_changed_anywhere(
    suite: str,
    raises_at: int | None,
    sae_path: Path,
    tmp_path: Path,
    suite_hub: HubServer,
    monkeypatch: Any,
) -> None:
    _check(suite, sae_path, tmp_path, monkeypatch, raises_at)


def _check(
    suite: str, sae_path: Path, tmp_path: Path, monkeypatch: Any, raises_at: int | None
) -> None:
    import_suites()
    monkeypatch.setattr("sae_lens_bipolar.saebench.run.LanguageModel", Loaded)
    encode, calls = AbsTopKSAE.encode, [0]

    def failing(self: AbsTopKSAE, x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == raises_at:
            raise ZeroDivisionError("in the middle")
        return encode(self, x)

    monkeypatch.setattr(AbsTopKSAE, "encode", failing)
    before, modules = process(), attributes()
    outcome = run(sae_path, tmp_path, suite)
    after = process()
    for name, value in before.items():
        assert after[name] == value, name
    now = attributes()
    for module, found in modules.items():
        changed = [name for name, key in found.items() if now[module].get(name) != key]
        assert changed == [], module
    assert_model_is_clean()
    if raises_at is None:
        assert outcome.not_run == []
    else:
        assert calls[0] >= raises_at
        (failed,) = outcome.not_run
        assert "in the middle" in failed.reason
        assert outcome.rows == []


def test_isolated_starts_from_the_seed_and_restores(tmp_path: Path) -> None:
    module = torch.nn.Dropout().train()
    drawn = []
    before = process()
    for seed in (1, 1, 2):
        with isolated(seed, tmp_path, [module], tmp_path / "log"):
            module.eval()
            torch.set_grad_enabled(False)
            os.environ["BENCH_TEST"] = "1"
            assert os.getcwd() == str(tmp_path)
            print("kept in the log")
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    after = process()
    assert before == after
    assert module.training
    assert drawn[0] == drawn[1] != drawn[2]
    assert (tmp_path / "log").read_text().count("kept in the log") == 3
