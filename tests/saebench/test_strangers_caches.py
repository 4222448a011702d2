"""A benchmark's output that came from a stranger: what is planted in it is neither run nor read.

The hash in a cache's name can be guessed and `--output RUN/bench` is the usual place, so a cache
with a pickle in it is all an attacker needs. Two locks are tested apart: a cache without this
user's seal is not read, and a file that is read (here with a seal made by the test, as if the key
had leaked) is data alone.
"""

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.saebench import BenchOutcome, bench, caches
from sae_lens_bipolar.saebench.host.data_only import data_only
from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config

pytest.importorskip("sae_bench")
import sae_bench
from sae_bench.evals.absorption.probing import LinearProbe
from sae_bench.evals.sparse_probing.probe_training import Probe
from sae_bench.evals.unlearning import main as unlearning
from sae_bench.evals.unlearning.utils import metrics

READ_FROM_CACHES = {  # suite -> what SAEBench reads there
    "absorption": ("*/layer_0/probe.pth",),
    "scr": ("*_probes.pkl", "*_activations.pt"),
    "sparse_probing": ("*_activations.pt",),
}


class Planted:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.trap),)


def plant(file: Path, trap: Path) -> None:
    """Write a trap to `file`, in the format in which SAEBench would read it."""
    if file.suffix == ".pkl":
        file.write_bytes(pickle.dumps(Planted(trap)))
    else:
        torch.save(Planted(trap), file)


@pytest.fixture(scope="module")
def outputs(
    tmp_path_factory: pytest.TempPathFactory, suite_hub: HubServer
) -> tuple[list[Path], Path, BenchOutcome]:
    """Two SAEs, an output that measured the first, and what is right for both."""
    root = tmp_path_factory.mktemp("strangers")
    model_dir = save_bench_model(root / "gpt2", "gpt2")
    saes = [
        save_bench_sae(root / name, bench_sae("topk", model_dir, seed=seed))
        for seed, name in enumerate(("first", "second"))
    ]
    config = tiny_config(suites=tuple(READ_FROM_CACHES))
    bench(saes[:1], root / "out", config)
    shutil.copytree(root / "out", root / "whole")
    return saes, root / "out", bench(saes, root / "whole", config)


def test_every_file_that_sae_bench_reads_as_objects_is_known() -> None:
    """Fails when upstream reads a pickle in another place, or in another way."""
    reader = re.compile(
        r"\btorch\.load\(|\bpickle\.(?:loads?|Unpickler)\(|read_pickle|\b(?:joblib|dill|marshal|"
        r"cloudpickle|shelve)\b|from pickle import|from torch import .*load|allow_pickle"
    )
    root = Path(sae_bench.__path__[0])
    found = {
        file.relative_to(root).as_posix(): sorted(set(reader.findall(text)))
        for file in root.rglob("*.py")
        if "custom_saes" not in file.parts and reader.search(text := file.read_text("utf-8"))
    }
    assert found == {
        "evals/absorption/common.py": ["torch.load("],
        "evals/autointerp/main.py": ["torch.load("],
        "evals/scr_and_tpp/main.py": ["pickle.load(", "torch.load("],
        "evals/sparse_probing/main.py": ["torch.load("],
        "evals/unlearning/main.py": ["pickle.load("],
        "evals/unlearning/utils/metrics.py": ["pickle.load("],
        "sae_bench_utils/activation_collection.py": ["torch.load("],
    }
    for file in found:  # a module of its own, as `data_only` replaces it
        text = (root / file).read_text("utf-8")
        assert not re.search(r"import (?:torch|pickle) as ", text), file


@pytest.mark.parametrize("resealed", [False, True], ids=["as shipped", "with the key"])
@pytest.mark.parametrize("suite", READ_FROM_CACHES)
def test_a_planted_cache_is_not_run(
    suite: str,
    resealed: bool,
    outputs: tuple[list[Path], Path, BenchOutcome],
    tmp_path: Path,
) -> None:
    saes, output, right = outputs
    expected = [row for row in right.rows if row["sae"] == "second" and row["suite"] == suite]
    assert expected
    for pattern in READ_FROM_CACHES[suite]:
        trap, copy = tmp_path / f"ran-{pattern[-4:]}", tmp_path / f"out-{pattern[-4:]}"
        shutil.copytree(output, copy)
        (cache,) = (copy / "cache").glob(f"{suite}-*")
        files = list(cache.rglob(pattern))
        assert files, "SAEBench reads something else"
        for file in files:
            plant(file, trap)
        if resealed:
            reseal(cache)
        outcome = bench(saes[1:], copy, tiny_config(suites=(suite,)))
        assert not trap.exists()
        rows = [row for row in outcome.rows if row["sae"] == "second"]
        if resealed:
            assert rows == []
            assert {one.suite for one in outcome.not_run} == {suite}
            assert all("holds more than data" in one.reason for one in outcome.not_run)
        else:
            assert outcome.not_run == []
            assert rows == expected, "as if there had been no cache"
            assert caches.is_usable(copy, cache), "the cache is made anew"


def reseal(cache: Path) -> None:
    """Give `cache` the seal that only the key's owner can make."""
    (cache / caches.SEAL).unlink()
    moved = cache.rename(cache.with_name("moved"))
    caches.keep(moved, cache)


def test_numbers_of_a_changed_cache_are_not_used(
    outputs: tuple[list[Path], Path, BenchOutcome], tmp_path: Path
) -> None:
    """Data can lie, too: activations of something else are not read either."""
    saes, output, right = outputs
    shutil.copytree(output, tmp_path / "out")
    (cache,) = (tmp_path / "out/cache").glob("sparse_probing-*")
    for file in cache.rglob("*_activations.pt"):
        acts = torch.load(file)
        acts["llm_results"] = {
            name: dict.fromkeys(values, 1.0) for name, values in acts["llm_results"].items()
        }
        torch.save(acts, file)
    outcome = bench(saes[1:], tmp_path / "out", tiny_config(suites=("sparse_probing",)))
    rows = [row for row in outcome.rows if row["sae"] == "second"]
    of_suite = [row for row in right.rows if row["suite"] == "sparse_probing"]
    assert rows == [row for row in of_suite if row["sae"] == "second"]


@pytest.mark.parametrize("module", [unlearning, metrics])
def test_unlearnings_own_files_are_data_too(module: Any, tmp_path: Path) -> None:
    plant(tmp_path / "planted.pkl", tmp_path / "ran")
    with (tmp_path / "planted.pkl").open("rb") as file, data_only():
        with pytest.raises(BenchError, match=r"planted\.pkl holds more than data"):
            module.pickle.load(file)
        for name in ("loads", "Unpickler"):
            with pytest.raises(BenchError, match="was stopped"):
                getattr(module.pickle, name)(b"")
    assert not (tmp_path / "ran").exists()
    assert module.pickle is pickle


def test_torch_load_is_forced_and_restored(tmp_path: Path) -> None:
    torch.save(Planted(tmp_path / "ran"), tmp_path / "planted.pt")
    load, save = torch.load, torch.save
    with data_only(), data_only():  # `bench` holds it, and each suite's isolation
        for function in (torch.load, torch.serialization.load):
            with pytest.raises(BenchError, match=r"planted\.pt holds more than data"):
                function(tmp_path / "planted.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    for module in (torch, torch.serialization):
        assert (module.load, module.save) == (load, save)


def test_probes_come_back_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = LinearProbe(5, 3).to(torch.bfloat16)
    binary = Probe(4, torch.float64)
    state = torch.get_rng_state()
    with data_only():
        torch.save(linear, tmp_path / "probe.pth")
        found = torch.load(tmp_path / "probe.pth", map_location="cpu", weights_only=False)
        with (tmp_path / "probes.pkl").open("wb") as file:
            metrics.pickle.dump({"llm_probes": {"a": binary}, "accuracies": {"a": 0.5}}, file)
        with (tmp_path / "probes.pkl").open("rb") as file:
            read = metrics.pickle.load(file)
    assert torch.equal(torch.get_rng_state(), state), "no random number is drawn"
    assert read["accuracies"] == {"a": 0.5}
    for probe, before in ((found, linear), (read["llm_probes"]["a"], binary)):
        assert type(probe) is type(before)
        for name, value in before.state_dict().items():
            assert torch.equal(probe.state_dict()[name], value)
            assert probe.state_dict()[name].dtype == value.dtype
        assert all(parameter.requires_grad for parameter in probe.parameters())
        x = torch.ones(2, 5 if probe is found else 4, dtype=next(probe.parameters()).dtype)
        assert torch.equal(probe(x), before(x))


def test_a_probe_of_another_class_is_refused(tmp_path: Path) -> None:
    torch.save({"module of sae_bench": "Popen", "state": {}}, tmp_path / "x")
    with data_only(), pytest.raises(BenchError, match="a probe that is not known here"):
        torch.load(tmp_path / "x")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    built = tmp_path / "out/scratch"
    (built / "deep").mkdir(parents=True)
    (built / "a.pt").write_bytes(b"numbers")
    (built / "deep/b.csv").write_bytes(b"1,2\n")
    path = caches.path_of(tmp_path / "out", "scr", {"seed": 1})
    caches.keep(built, path)
    return path


def change(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda path: change(path / "a.pt", b"NUMBERS"),
    "longer": lambda path: change(path / "a.pt", b"numbers1"),
    "another file": lambda path: change(path / "c.pkl", b""),
    "a file less": lambda path: (path / "a.pt").unlink(),
    "moved": lambda path: (path / "a.pt").rename(path / "deep/a.pt"),
    "content of two swapped": lambda path: (
        change(path / "a.pt", b"1,2\n"),
        change(path / "deep/b.csv", b"numbers"),
    ),
    "no seal": lambda path: (path / caches.SEAL).unlink(),
    "an empty seal": lambda path: change(path / caches.SEAL, b""),
    "another seal": lambda path: change(path / caches.SEAL, b"0" * 64),
    "a link": lambda path: (path / "l").symlink_to(path / "a.pt"),
    "a pipe": lambda path: os.mkfifo(path / "p"),
    "a seal that is a pipe": lambda path: (
        (path / caches.SEAL).unlink(),
        os.mkfifo(path / caches.SEAL),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_seal_covers_all_there_is(name: str, cache: Path) -> None:
    output = cache.parents[1]
    assert caches.is_usable(output, cache)
    CHANGES[name](cache)
    assert not caches.is_usable(output, cache)
    assert not cache.exists(), "it is made anew"


def test_a_seal_is_of_this_name_and_this_users_key(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = cache.parents[1]
    other = shutil.copytree(cache, caches.path_of(output, "tpp", {"seed": 1}))
    assert not caches.is_usable(output, other)
    copy = shutil.copytree(cache, tmp_path / "there" / "cache" / cache.name)
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path / "another-user"))
    assert not caches.is_usable(tmp_path / "there", copy)


def test_the_key_is_for_the_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path / "new"))
    key = caches._key()
    (file,) = (tmp_path / "new").iterdir()
    assert len(key) == 32
    assert file.read_bytes() == key == caches._key()
    assert file.stat().st_mode & 0o077 == 0


def test_a_cache_behind_a_link_is_not_deleted_through_it(cache: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").write_text("mine")
    shutil.rmtree(cache)
    cache.symlink_to(victim)
    with pytest.raises(ValueError, match="link"):
        caches.is_usable(cache.parents[1], cache)
    assert (victim / "mine").exists()


def test_only_caches_are_removed_and_what_a_user_put_beside_them_stays(cache: Path) -> None:
    folder = cache.parent
    (folder / "scr-notes").mkdir()
    (folder / "photos").mkdir()
    caches.remove_all(folder.parent)
    assert sorted(path.name for path in folder.iterdir()) == ["photos", "scr-notes"]
