"""README and documentation: every block is run or says why not, no link is dead, all builds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pages import (
    CONTRIBUTING,
    DOCS,
    RAW,
    README,
    REPOSITORY,
    ROOT,
    anchors,
    blocks,
    links,
    read,
    script,
)

WRITTEN = sorted(DOCS.rglob("*.md"))
PAGES = [README, CONTRIBUTING, *WRITTEN]
PICTURES = DOCS / "images/explorer"


def in_order() -> list[Path]:
    """The written pages, as the navigation has them."""

    def paths(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [path for part in parts for path in paths(part)]  # type: ignore[union-attr]

    nav = yaml.safe_load(read(ROOT / "mkdocs.yml"))["nav"]
    return [DOCS / path for path in paths(nav) if (DOCS / path).is_file()]


def generated() -> dict[str, str]:
    pytest.importorskip("mkdocs")
    sys.path.insert(0, str(DOCS))
    try:
        import generated as hooks  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(DOCS))
    return dict(hooks.pages())


def run(text: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(read(page)):
        commands = re.findall(r"^(\S+) (\S+)", block.text, re.M)
        installs = {("make", None), ("pip", "install"), ("sae-lens-bipolar", "doctor")}
        only_installs = all({(word, None), (word, then)} & installs for word, then in commands)
        is_run = page not in (CONTRIBUTING,) and block.language in ("python", "bash")
        assert is_run or block.reason or (block.language == "" and only_installs), block


def test_the_readme_works_as_it_stands(tmp_path: Path) -> None:
    printed = run(script([README]), tmp_path)
    assert "Reconstruction(" in printed
    card = (tmp_path / "my_abstopk/publish/README.md").read_text(encoding="utf-8")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "State of the Union" in card


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_documentation_works_as_it_stands(tmp_path: Path) -> None:
    printed = run(script([README, *in_order()]), tmp_path)
    assert "Reconstruction(" in printed
    assert (tmp_path / "my_abstopk_split" / "cfg.json").is_file()


def test_no_link_is_dead() -> None:
    texts = {page: read(page) for page in PAGES}
    made = generated()
    wrong = []
    for page, text in texts.items():
        for link in links(text):
            target, _, anchor = link.partition("#")
            for prefix in (f"{REPOSITORY}/blob/main/", RAW):
                if target.startswith(prefix):
                    target = os.path.relpath(ROOT / target.removeprefix(prefix), page.parent)
            if target.startswith(("https://", "http://", "mailto:")):
                assert target.startswith("https://"), f"{page}: {link}"
                continue
            path = Path(os.path.normpath(page.parent / target)) if target else page
            if path.parent == PICTURES and not PICTURES.exists():
                continue  # the explorer's pictures, taken from a run in a browser
            name = os.path.relpath(path, DOCS).replace(os.sep, "/")
            if not path.exists() and name not in made:
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
            elif anchor and anchor not in anchors(made.get(name) or texts.get(path, "")):
                wrong.append(f"{page.relative_to(ROOT)}: no heading for #{anchor} in {name}")
    assert not wrong, "\n".join(wrong)


def test_addresses_are_those_of_the_project() -> None:
    project = read(ROOT / "pyproject.toml")
    assert f'Repository = "{REPOSITORY}"' in project
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", read(README)):
        assert image.startswith(RAW)  # PyPI shows the README without the repository


def test_generated_pages_say_every_option_and_formula() -> None:
    import sae_lens_bipolar

    made = generated()
    for name, record in sae_lens_bipolar.ARCHITECTURES.items():
        if record.training is None:
            continue
        page = made[f"architectures/{name}.md"]
        assert record.formula in page
        assert record.when
        assert record.when in page
        assert "b_dec_init" in page
        assert made[f"architectures/{name}.svg"].count("<path") > 5
        assert not re.search(r"\| +\|$", page, re.M)  # an option without a sentence
    assert "## train" in made["cli.md"]


@pytest.mark.slow
def test_the_documentation_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site/architectures/abstopk/index.html").is_file()
