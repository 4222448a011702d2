"""The card's picture and latents: of these weights, and nothing of the text they read."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.hub.illustrations import PICTURE, percent, shown_latents
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.reports import drawing
from tests.hub.published_run import write_latents, write_run

SAES = ("abstopk", "topk")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", SAES)


def published(run_dir: Path, **options: Any) -> Path:
    folder = publish(run_dir, PublishConfig("ada/signed", license="mit", **options), True).folder
    assert folder is not None
    return folder


def test_a_few_latents_by_the_tokens_of_each_side(run_dir: Path) -> None:
    card = (published(run_dir) / "README.md").read_text()
    assert "| `abstopk` | 7 | 1.2 % | `war`, `` `¦ `` | 20 % | `peace` |" in card
    assert "| `abstopk` | 9 | 1.2 % | `war`, `` `¦ `` | never |  |" in card
    assert "somebody" not in card


def test_the_picture_stands_in_the_folder_and_in_the_card(run_dir: Path) -> None:
    for options, place in (({}, PICTURE), ({"id": "layer-12"}, f"layer-12/{PICTURE}")):
        folder = published(run_dir, **options)
        assert f"]({place})" in (folder / "README.md").read_text()
        assert (folder / place).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_card_without_matplotlib_has_no_picture(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise ImportError("matplotlib")

    monkeypatch.setattr(drawing, "require_matplotlib", gone)
    folder = published(run_dir)
    assert not list(folder.rglob("*.png"))
    card = (folder / "README.md").read_text()
    assert "![" not in card
    assert "| `abstopk` | 7 |" in card


def test_latents_of_other_weights_are_not_shown(run_dir: Path) -> None:
    file = run_dir / "results/latents/abstopk.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "digest": "0" * 64}))
    assert "| `abstopk` | 7 |" not in (published(run_dir) / "README.md").read_text()


def test_damaged_descriptions_of_these_weights_stop_the_publishing(run_dir: Path) -> None:
    write_latents(run_dir, "abstopk", raises=[[3, 1.0]])
    with pytest.raises(DataError, match=r"abstopk\.json.*raises\[0\]"):
        published(run_dir)


def test_lines_are_shared_out_over_the_saes(run_dir: Path) -> None:
    rows = {}
    for name in SAES:
        write_latents(run_dir, name)
        found = json.loads((run_dir / f"results/latents/{name}.json").read_text())
        found["latents"] *= 10
        (run_dir / f"results/latents/{name}.json").write_text(json.dumps(found))
        rows[name] = {"name": name, "digest": found["digest"]}
    shown = shown_latents(run_dir, rows)
    assert [latent.id for latent in shown] == ["abstopk"] * 6 + ["topk"] * 6


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0, "never"), (1, "100 %"), (0.5, "50 %"), (0.0123, "1.2 %"), (1.24e-4, "0.012 %")],
)
def test_rates_to_two_digits(rate: float, words: str) -> None:
    assert percent(rate) == words


def test_the_smallest_rates_take_no_line_of_noughts() -> None:
    assert len(percent(1e-300)) < 12
