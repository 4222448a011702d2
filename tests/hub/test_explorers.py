"""An explorer on its way to the Hub: its files, its link on the card, whose weights it shows."""

from pathlib import Path

import pytest

from sae_lens_bipolar.errors import ConfigError, HubError
from sae_lens_bipolar.explorer import site
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.runs.sources import find_saes
from tests.hub.published_run import write_run

CONFIG = PublishConfig("ada/saes", license="mit", with_explorer=True)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two SAEs and the files that an explorer of them has."""
    made = write_run(tmp_path / "run", ("abstopk", "topk"))
    explorer = made / "explorer"
    shown = [{"name": one.name, "digest": one.digest} for one in find_saes([made])]
    site.write_page(explorer, "two SAEs")
    site.put(explorer, "site", {"saes": shown})
    (explorer / ".lock").touch()
    (explorer / "mine.txt").write_text("of the user")
    return made


def test_the_explorer_goes_along_and_is_linked_from_the_card(run_dir: Path) -> None:
    folder = publish(run_dir, CONFIG, dry_run=True).folder
    assert folder is not None
    sent = {path.relative_to(folder).as_posix() for path in folder.glob("explorer/**/*")}
    assert {"explorer/index.html", "explorer/data/site.js", "explorer/static/app.js"} <= sent
    assert "explorer/static/vendor/preact.LICENSE" in sent
    assert not {name for name in sent if "mine" in name or ".lock" in name}
    assert "[`explorer`](explorer)" in (folder / "README.md").read_text(encoding="utf-8")


def test_nothing_of_it_goes_along_unasked(run_dir: Path) -> None:
    plain = PublishConfig("ada/saes", license="mit")
    folder = publish(run_dir, plain, dry_run=True).folder
    assert folder is not None
    assert not (folder / "explorer").exists()
    assert "explorer" not in (folder / "README.md").read_text(encoding="utf-8")


def test_an_explorer_of_other_weights_stops_the_publishing(run_dir: Path) -> None:
    facts = site.get(run_dir / "explorer", "site")
    facts["saes"][1]["digest"] = "0" * 64
    site.put(run_dir / "explorer", "site", facts)
    with pytest.raises(HubError, match="other weights"):
        publish(run_dir, CONFIG, dry_run=True)


def test_a_run_without_an_explorer_is_told_how_to_build_one(run_dir: Path) -> None:
    (run_dir / "explorer/data/site.js").unlink()
    with pytest.raises(ConfigError, match="sae-lens-bipolar explore"):
        publish(run_dir, CONFIG, dry_run=True)


def test_numbers_that_begin_like_a_key_do_not(run_dir: Path) -> None:
    """A demo's explorer of 10 MB held one: base64 has 64 letters, and a key begins with four."""
    site.put(run_dir / "explorer", "tokens", {"texts": ["AIza" + "mIsEAP8f5wcA" * 20 + "=="]})
    assert publish(run_dir, CONFIG, dry_run=True).folder is not None


def test_a_token_in_it_stops_the_publishing(run_dir: Path) -> None:
    site.put(run_dir / "explorer", "tokens", {"texts": ["hf_" + "aB3" * 12]})
    with pytest.raises(HubError, match=r"data/tokens\.js"):
        publish(run_dir, CONFIG, dry_run=True)
