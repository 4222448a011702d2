"""A run of a stranger, or with results of another: nothing leaks, hangs, or is shown wrongly."""

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.errors import (
    BipolarError,
    ConfigError,
    DataError,
    DiskFullError,
    UnsafePathError,
)
from sae_lens_bipolar.files.atomic import new_scratch
from sae_lens_bipolar.files.digests import DIGEST, checkpoint_digest
from sae_lens_bipolar.files.names import MARKER, SAE_CONFIG, SAE_WEIGHTS
from sae_lens_bipolar.reports import render
from sae_lens_bipolar.reports.rundir import read_run
from tests.files.decoy import make_decoy, state
from tests.reports.synthetic_run import ARCHITECTURES, change, make_run

FILES = (
    *("config.yaml", "environment.json", "metrics.jsonl", "results/summary.json"),
    *("results/census/topk.json", "results/latents/topk.json"),
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", d_sae=24, steps=5, latents=3)


# Links, pipes, bombs


@pytest.mark.parametrize("name", [*FILES, "results", "results/census"])
def test_a_link_out_of_the_run_is_not_read(run_dir: Path, tmp_path: Path, name: str) -> None:
    decoy = make_decoy(tmp_path / "victim")
    (run_dir / name).rename(tmp_path / "moved")
    (run_dir / name).symlink_to(tmp_path / "moved")
    before = state(decoy)
    with pytest.raises(UnsafePathError, match="is a link that leaves"):
        render(run_dir)
    assert not (run_dir / "report").exists()
    assert state(decoy) == before


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(run_dir: Path, name: str) -> None:
    (run_dir / name).unlink()
    os.mkfifo(run_dir / name)
    with pytest.raises(DataError, match="is a named pipe"):
        read_run(run_dir)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500 + "\n",
        '{"sae": "topk", "step": ' + "9" * 400 + "}\n",
        '{"latents": 1, "positive_rate"',
        "a: &a [1]\nb: *a\n",
    ],
)
def test_bombs_and_torn_files_are_named(run_dir: Path, name: str, content: str) -> None:
    (run_dir / name).write_text(content + "\n" * (name == "metrics.jsonl"))
    with pytest.raises(DataError, match=name.rsplit("/", 1)[-1].replace(".", r"\.")) as caught:
        read_run(run_dir)
    assert len(str(caught.value)) < 5_000


@pytest.mark.parametrize("name", ["x" * 1_000_000, "a\x1b[2Jb", "\u202ea"])
def test_names_are_short_and_printable(run_dir: Path, name: str) -> None:
    change(run_dir / "results/summary.json", lambda rows: rows[0].update(name=name))
    with pytest.raises(DataError, match=r"summary\.json\[0\]: 'name'") as caught:
        render(run_dir)
    assert len(str(caught.value)) < 1_000
    assert "\x1b" not in str(caught.value)


def test_a_text_of_megabytes_is_cut_on_the_page(run_dir: Path) -> None:
    long = "z" * 2_000_000
    change(run_dir / "environment.json", lambda found: found.update(command=long, device=long))
    change(run_dir / "results/summary.json", lambda rows: rows[0].update(model=[long]))
    assert render(run_dir).stat().st_size < 500_000


# The output


@pytest.mark.parametrize("place", ["report", "report/index.html"])
def test_a_report_of_somebody_is_not_replaced(run_dir: Path, place: str) -> None:
    for file in (run_dir / "config.yaml", run_dir / MARKER):  # not even a run
        file.unlink(missing_ok=True)
    (run_dir / place).mkdir(parents=True)
    (run_dir / "report" / "thesis.tex").write_text("mine")
    with pytest.raises(UnsafePathError, match="report was not made by this package"):
        render(run_dir)
    assert (run_dir / "report" / "thesis.tex").read_text() == "mine"


def test_a_report_that_is_a_link_is_not_followed(run_dir: Path, tmp_path: Path) -> None:
    decoy = make_decoy(tmp_path / "victim")
    before = state(decoy)
    (run_dir / "report").symlink_to(decoy / "report")
    with pytest.raises(UnsafePathError, match="is a link"):
        render(run_dir)
    assert state(decoy) == before


def test_a_report_of_ours_is_redrawn_where_nothing_is_marked(run_dir: Path) -> None:
    (run_dir / "config.yaml").unlink()
    page = render(run_dir)
    before = page.read_bytes()
    assert render(run_dir).read_bytes() == before


def test_what_a_killed_report_left_is_removed(run_dir: Path) -> None:
    half = new_scratch(run_dir / "report")
    (half / "figures").mkdir()
    other = new_scratch(run_dir / "results")
    (run_dir / ".mine.tmp").mkdir()
    render(run_dir)
    assert not half.exists()
    assert other.exists()
    assert (run_dir / ".mine.tmp").exists()


def test_a_run_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(DataError, match="is not a directory"):
            render(path)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EROFS, ConfigError), (errno.EACCES, ConfigError)]
)
def test_a_read_only_run_is_one_sentence(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BipolarError]
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(run_dir)):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(error, match="cannot be written to"):
        render(run_dir)


def test_a_full_disk_leaves_the_report_of_before(run_dir: Path) -> None:
    before = render(run_dir).read_bytes()
    child = os.fork()
    if child == 0:
        code = 9
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            render(run_dir)
        except DiskFullError:
            code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (run_dir / "report" / "index.html").read_bytes() == before
    assert not list(run_dir.glob(".sae-lens-bipolar-*"))


# Results of other weights


def add_checkpoints(run_dir: Path) -> None:
    """A checkpoint for each SAE, and its digest in every measurement."""
    for i, name in enumerate(ARCHITECTURES):
        folder = run_dir / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / SAE_CONFIG).write_text(json.dumps({"architecture": name}))
        (folder / SAE_WEIGHTS).write_bytes(bytes([i]) * 64)
        digest = checkpoint_digest(folder)
        change(run_dir / f"results/census/{name}.json", lambda c, d=digest: c.update({DIGEST: d}))
    change(run_dir / "results/summary.json", lambda rows: _name(rows, run_dir))


def _name(rows: list[dict[str, Any]], run_dir: Path) -> None:
    for row in rows:
        row[DIGEST] = checkpoint_digest(run_dir / "checkpoints" / row["name"])


def test_results_of_the_weights_that_are_there_are_shown_without_a_note(run_dir: Path) -> None:
    plain = render(run_dir).read_bytes()
    add_checkpoints(run_dir)
    assert read_run(run_dir).notes == ()
    assert render(run_dir).read_bytes() == plain


def other_weights(folder: Path) -> None:
    (folder / SAE_WEIGHTS).write_bytes(b"other" * 10)


def other_config(folder: Path) -> None:
    (folder / SAE_CONFIG).write_text(json.dumps({"architecture": "topk", "k": 2}))


def half_gone(folder: Path) -> None:
    (folder / SAE_WEIGHTS).unlink()


def another_sae(folder: Path) -> None:
    (folder / SAE_WEIGHTS).write_bytes((folder.parent / "gated" / SAE_WEIGHTS).read_bytes())


@pytest.mark.parametrize("edit", [other_weights, other_config, half_gone, another_sae])
def test_results_of_other_weights_are_not_shown(
    run_dir: Path, edit: Callable[[Path], None]
) -> None:
    add_checkpoints(run_dir)
    edit(run_dir / "checkpoints" / "topk")
    run = read_run(run_dir)
    assert run.sae_names() == [name for name in ARCHITECTURES if name != "topk"]
    assert "topk" not in {*run.census, *run.latents, *(line["sae"] for line in run.metrics)}
    html = render(run_dir).read_text()
    assert "results/summary.json was measured on other weights of topk" in html
    tables = (run_dir / "report" / "tables" / "summary.csv").read_text()
    assert "\ntopk" not in tables


def test_one_stale_census_hides_the_sae_too(run_dir: Path) -> None:
    add_checkpoints(run_dir)
    change(run_dir / "results/census/gated.json", lambda census: census.update({DIGEST: "0" * 64}))
    run = read_run(run_dir)
    assert "gated" not in run.sae_names()
    assert any("results/census/gated.json was measured on other" in note for note in run.notes)


def test_an_old_run_that_names_no_weights_is_shown_and_the_page_says_so(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "topk"
    folder.mkdir(parents=True)
    (folder / SAE_CONFIG).write_text("{}")
    (folder / SAE_WEIGHTS).write_bytes(b"x")
    html = render(run_dir).read_text()
    assert "the results of topk do not say which weights they were measured on" in html
    assert read_run(run_dir).sae_names() == list(ARCHITECTURES)
