"""Verdict files: what may be in them, and the table they become."""

from pathlib import Path

import pytest

from recipes.common import claims
from sae_lens_bipolar.errors import ConfigError


def test_verdicts() -> None:
    assert claims.verdict(True) == "holds"
    assert claims.verdict(False) == "does not hold"
    assert claims.verdict(None) == "not run at this scale"


def test_a_file_is_read_back_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = [
        claims.Claim("wider | better", "0.5", "0.1", seeds=3, tokens=128_000, verdict="holds"),
        claims.Claim("never", "1", "", seeds=0, tokens=0, verdict="not run at this scale"),
    ]
    path = claims.write_claims(tmp_path, written)
    assert path == tmp_path / "results/claims.json"
    assert claims.read_claims(path) == written
    claims.main([str(path)])
    shown = capsys.readouterr().out
    assert r"| wider \| better | 0.5 | 0.1 | 3 | 128,000 | **holds** |" in shown
    assert "| never | 1 | - | 0 | 0 | **not run at this scale** |" in shown


@pytest.mark.parametrize(
    "change", [{"verdict": "probably"}, {"seeds": -1}, {"tokens": -5}], ids=lambda c: next(iter(c))
)
def test_a_claim_that_is_not_allowed(change: dict[str, object]) -> None:
    whole = {"claim": "c", "paper": "p", "ours": "o", "seeds": 1, "tokens": 1, "verdict": "holds"}
    with pytest.raises(ConfigError, match=next(iter(change))):
        claims.Claim(**{**whole, **change})


def test_a_folder_is_shown_with_a_heading_per_run(tmp_path: Path) -> None:
    one = claims.Claim("c", "p", "o", 1, 2, "holds")
    for name in ("paper/figure", "other"):
        claims.write_claims(tmp_path / name, [one])
    page = claims.claims_page([tmp_path])
    headings = [line for line in page.splitlines() if line.startswith("##")]
    assert headings == ["## other", "## paper/figure"]
    assert page.count("| c | p | o | 1 | 2 | **holds** |") == 2


def test_small_is_a_smoke_test_where_there_is_evidence_and_evidence_comes_first(
    tmp_path: Path,
) -> None:
    one = claims.Claim("c", "p", "o", 1, 2, "holds")
    scales = {
        "abstopk/figure4": "small",
        "medium/abstopk/figure4": "medium",
        "sagsae/toys": "small",
    }
    for name, scale in scales.items():
        claims.write_claims(tmp_path / name, [one])
        (tmp_path / name / "config.yaml").write_text(f"scale: {scale}")
    parts = claims.claims_page([tmp_path]).split("## ")[1:]
    assert [part.split()[0] for part in parts] == [
        *("medium/abstopk/figure4", "abstopk/figure4", "sagsae/toys")
    ]
    assert ["Smoke test" in part for part in parts] == [False, True, False]


def test_an_estimate_has_a_column(tmp_path: Path) -> None:
    sure = claims.Claim("c", "p", "o", 3, 2, "holds", 0.02, 0.01, 0.03, 0.005, 160)
    path = claims.write_claims(tmp_path, [sure, claims.Claim("d", "p", "", 0, 0, claims.NOT_RUN)])
    assert claims.read_claims(path)[0] == sure
    table = claims.claims_table(claims.read_claims(path))
    assert "| o | +0.0200 [+0.0100, +0.0300] against +0.0050, 160 examples | 3 |" in table
    assert "| d | p | - | - | 0 |" in table


def test_the_committed_page_says_what_the_verdict_files_say() -> None:
    """`python -m recipes.common.claims recipes/results > recipes/results/README.md`"""
    results = Path(__file__).parents[3] / "recipes/results"
    assert (results / "README.md").read_text(encoding="utf-8") == claims.claims_page([results])
