"""An output directory is new, empty or ours; of what is in it `bench` removes its own, by name."""

from pathlib import Path

import pytest

from sae_lens_bipolar.errors import ConfigError, UnsafePathError
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.saebench import BenchConfig, bench
from sae_lens_bipolar.saebench.store import SCRATCH
from tests.files.decoy import make_decoy, state
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config
from tests.tiny_models import write_text


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchConfig]:
    """An SAE, and a configuration of the shortest suite that keeps no caches."""
    root = tmp_path_factory.mktemp("files")
    sae = save_bench_sae(root / "topk", bench_sae("topk", save_bench_model(root / "m", "gpt2")))
    text = str(write_text(root / "text.jsonl"))
    return sae, tiny_config(suites=("core",), core_dataset=text, keep_caches=False)


def test_a_folder_of_somebody_is_refused_and_stays_as_it_is(
    core: tuple[Path, BenchConfig], tmp_path: Path
) -> None:
    mine = make_decoy(tmp_path / "photos")
    (mine / ".scratch").mkdir()
    (mine / ".scratch/kept").write_text("mine")
    (mine / SCRATCH).mkdir()
    before = state(mine)
    with pytest.raises(ConfigError, match="is not a run of this package and not empty"):
        bench([core[0]], mine, core[1])
    assert state(mine) == before


def test_in_an_output_what_is_not_ours_stays(
    core: tuple[Path, BenchConfig], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    claim_output(output)
    kept = [
        *(output / ".scratch/notes.txt", output / "cache/notes.txt", output / "cache/scr-1/x"),
        *(output / "saebench/.mine.tmp/x", output / "results/.old.tmp/x", output / "logs/a.txt"),
    ]
    for file in kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    ours = [output / SCRATCH / "x", output / "cache" / f"scr-{'0a' * 8}" / "probes.pkl"]
    for file in ours:
        file.parent.mkdir(parents=True)
        file.write_text("left by a killed process")
    assert bench([core[0]], output, core[1]).not_run == []
    assert [file for file in kept if not file.exists()] == []
    assert [file for file in ours if file.parent.exists()] == []


@pytest.mark.parametrize("name", [SCRATCH, "cache", "saebench", "results", "logs"])
def test_nothing_is_done_through_a_link_that_leaves_the_output(
    name: str, core: tuple[Path, BenchConfig], tmp_path: Path
) -> None:
    victim = make_decoy(tmp_path / "victim")
    output = tmp_path / "out"
    claim_output(output)
    (output / name).symlink_to(victim)
    before = state(victim)
    with pytest.raises(UnsafePathError, match=name):
        bench([core[0]], output, core[1])
    assert state(victim) == before


@pytest.mark.parametrize("name", [SCRATCH, f"cache/scr-{'0a' * 8}"])
def test_nothing_is_deleted_through_a_link_inside_the_output(
    name: str, core: tuple[Path, BenchConfig], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    claim_output(output)
    made = make_decoy(output / "saebench/mine")
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).symlink_to(made)
    before = state(made)
    with pytest.raises(UnsafePathError, match="remove it yourself"):
        bench([core[0]], output, core[1])
    assert state(made) == before
