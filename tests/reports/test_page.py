"""The page: its numbers come from the files, its text is escaped, its files are whole."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import sae_lens_bipolar.reports
from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.reports import excerpts, figures, render, require_matplotlib, tables
from sae_lens_bipolar.reports.page import duration, page_html, percent
from sae_lens_bipolar.reports.run_files import SINK_NUMBERS
from sae_lens_bipolar.reports.rundir import read_run
from tests.reports.synthetic_run import ARCHITECTURES, SIGNED, change, make_run

VOID = {"meta", "img", "br", "rect", "line"}


class Page(HTMLParser):
    """Cells of each table, text, attributes, and tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self._cell: list[str] | None = None
        self._table = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = dict(attrs)["aria-label"] or ""
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            assert self._cell is not None
            self.tables[self._table][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "demo", d_sae=64, steps=4, latents=2)


def html_of(run_dir: Path) -> str:
    """The page without saving the figures (they have their own tests)."""
    run = read_run(run_dir)
    names = {"training": run.metrics, "reconstruction": run.summary, "polarity": run.census}
    plots = [
        figures.Plot(name, "", Figure(), ("", "", "", ""), []) for name in names if names[name]
    ]
    return page_html(run, plots)


def test_render_writes_page_figures_and_tables_and_needs_nothing_else(run_dir: Path):
    page = render(run_dir)
    assert page == run_dir / "report" / "index.html"
    assert sorted(str(f.relative_to(page.parent)) for f in page.parent.rglob("*.*")) == [
        *(
            f"figures/{n}.{s}"
            for n in ("polarity", "reconstruction", "training")
            for s in ("csv", "png")
        ),
        "index.html",
        *(f"tables/summary.{suffix}" for suffix in ("csv", "md", "tex")),
    ]
    rows = json.loads((run_dir / "results/summary.json").read_text())
    assert (page.parent / "tables/summary.csv").read_text() == tables.csv(rows)
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.open == []
    links = [attrs.get("src") or attrs.get("href") for _, attrs in parsed.tags]
    for link in filter(None, links):
        if link.startswith("#"):
            assert any(attrs.get("id") == link[1:] for _, attrs in parsed.tags), link
        else:
            assert (page.parent / link).is_file(), link
    assert not re.search(r"https?:|<script|@import|url\(", page.read_text(encoding="utf-8"))


def test_rendering_twice_gives_the_same_bytes(run_dir: Path):
    first = {f.name: f.read_bytes() for f in render(run_dir).parent.rglob("*.*")}
    second = {f.name: f.read_bytes() for f in render(run_dir).parent.rglob("*.*")}
    assert first == second


def test_the_tables_hold_the_files_numbers(run_dir: Path):
    rows = json.loads((run_dir / "results/summary.json").read_text())
    parsed = Page(html_of(run_dir))
    headline = parsed.tables["results without attention-sink tokens"]
    assert headline[1:] == tables.formatted(rows, tables.headline(rows))
    by_name = {row[0]: row for row in headline[1:]}
    assert by_name["gated"][2:5] == [
        f"{rows[2][k]:.{d}f}" for k, d in (("l0", 1), ("nmse", 3), ("r2", 3))
    ]
    sinks = parsed.tables["results with attention-sink tokens"]
    assert sinks[1:] == tables.formatted(rows, tables.WITH_SINKS)


@pytest.mark.parametrize("key", [c.key for c in tables.HEADLINE if c.style != "text"])
def test_a_changed_number_changes_only_its_cell_of_the_table(run_dir: Path, key: str):
    before = Page(html_of(run_dir)).tables["results without attention-sink tokens"]
    value = {"d_sae": 512, "l0": 77.7}.get(key, 0.654)
    change(run_dir / "results/summary.json", lambda rows: rows[1].update({key: value}))
    after = Page(html_of(run_dir)).tables["results without attention-sink tokens"]
    changed = [
        (i, j) for i, row in enumerate(after) for j, c in enumerate(row) if c != before[i][j]
    ]
    shown = {"d_sae": "512", "l0": "77.7", "dead_fraction": "65.4", "bipolar_fraction": "65.4"}
    assert len(changed) == 1
    assert after[2][changed[0][1]] == shown.get(key, "0.654")


@pytest.mark.parametrize("key", SINK_NUMBERS)
def test_a_changed_number_with_sinks_changes_its_cell(run_dir: Path, key: str):
    before = Page(html_of(run_dir)).tables["results with attention-sink tokens"]
    change(
        run_dir / "results/summary.json", lambda rows: rows[3]["with_sinks"].update({key: 0.321})
    )
    after = Page(html_of(run_dir)).tables["results with attention-sink tokens"]
    assert [row for row in after if row not in before] == [after[4]]


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("results/summary.json", {"n_train_tokens": 987654}, "987,654 tokens"),
        ("results/summary.json", {"n_eval_tokens": 4321}, "4,321 held-out tokens"),
        (
            "results/summary.json",
            {"n_sink_tokens": 77},
            "77 held-out tokens, besides the 65,536 measured",
        ),
        ("results/summary.json", {"model": "pythia-70m"}, "pythia-70m"),
        ("results/summary.json", {"hook_name": "blocks.3.hook_mlp_out"}, "blocks.3.hook_mlp_out"),
        ("results/summary.json", {"seed": 7}, "Seed 7."),
        ("results/summary.json", {"train_seconds": 3725}, "Training took 1 h 2 min"),
        (
            "environment.json",
            {"command": "sae-lens-bipolar train --x"},
            "sae-lens-bipolar train --x",
        ),
        ("environment.json", {"command": ["a", "b c"]}, "a 'b c'"),
        ("environment.json", {"packages": {"torch": "9.9.9"}}, "9.9.9"),
        ("environment.json", {"commit": "feedbee"}, "feedbee"),
    ],
)
def test_what_was_run_comes_from_the_files(
    run_dir: Path, file: str, edit: dict[str, Any], expected: str
):
    def apply(value: Any) -> None:
        for part in value if isinstance(value, list) else [value]:
            part.update(edit)

    assert expected not in " ".join(Page(html_of(run_dir)).text.split())
    change(run_dir / file, apply)
    assert expected in " ".join(Page(html_of(run_dir)).text.split())


def test_the_sentence_on_the_best_follows_the_table(run_dir: Path):
    def edit(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row.update(nmse=0.1 + 0.1 * i, loss_recovered=0.9 - 0.1 * i, l0=60 + i)

    change(run_dir / "results/summary.json", edit)
    text = Page(html_of(run_dir)).text
    nmse = "best for topk (0.100 at L0 60.0) and worst for sign_aware_gated (0.400 at L0 63.0)"
    assert f"nMSE is {nmse}. Loss recovered is best for topk (0.900 at L0 60.0) and" in text


def test_at_least_ten_two_sided_latents_with_both_sides(tmp_path: Path):
    run_dir = make_run(tmp_path / "run", d_sae=64, steps=2, latents=11)
    html = html_of(run_dir)
    for name in SIGNED:
        section = html.split(f">{name}</h3>")[1].split("<h3")[0].split("<footer")[0]
        cards = section.split('<article class="latent">')[1:]
        assert len(cards) == 11
        latents = json.loads((run_dir / f"results/latents/{name}.json").read_text())["latents"]
        for card, latent in zip(cards, latents, strict=True):
            assert f"<h4>Latent {latent['index']}</h4>" in card
            assert percent(latent["positive_rate"]) in card
            assert card.count('<div class="context">') == 14
            assert '<svg class="histogram"' in card
            for side in ("positive", "negative"):
                for context in latent["contexts"][side]:
                    assert excerpts.signed(context["activations"][context["peak"]]) in card
            for token, value in latent["raises"] + latent["lowers"]:
                assert excerpts.tokens_html([(token, value)]) in card


def test_one_sided_latents_are_folded_and_said_to_be_so(run_dir: Path):
    html = html_of(run_dir)
    section = html.split(">topk</h3>")[1].split("<h3")[0]
    census = json.loads((run_dir / "results/census/topk.json").read_text())
    live = sum(rate > 0 for rate in census["positive_rate"])
    assert f"None of its {live} live latents fires on both sides on 65,536 tokens." in section
    assert "<summary>2 one-sided latents of topk</summary>" in section


def test_tokens_names_and_settings_are_escaped(run_dir: Path):
    evil = "<script>alert(1)</script>&\"'"

    def edit(value: dict[str, Any]) -> None:
        latent = value["latents"][0]
        context = latent["contexts"]["positive"][0]
        peak = context["peak"]
        context["tokens"][peak] = context["tokens"][peak - 1] = evil
        context["document"] = evil
        latent["raises"][0][0] = evil

    change(run_dir / "results/latents/abstopk.json", edit)
    change(run_dir / "results/summary.json", lambda rows: rows[0].update(name=evil, model=evil))
    change(run_dir / "environment.json", lambda e: e.update(command=evil, packages={evil: evil}))
    html = html_of(run_dir)
    assert "<script" not in html
    parsed = Page(html)
    assert parsed.open == []
    assert parsed.text.count(evil) >= 8
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script"})


def test_text_that_is_not_unicode_or_hides_itself_can_be_seen(run_dir: Path):
    def edit(value: dict[str, Any]) -> None:
        context = value["latents"][0]["contexts"]["positive"][0]
        context["tokens"][context["peak"]] = "\ud83d\u202e\x00"
        context["document"] = "\ud83d"

    change(run_dir / "results/latents/abstopk.json", edit)
    html = render(run_dir).read_text(encoding="utf-8")
    assert "‹U+D83D›‹U+202E›‹U+0000›" in html
    assert "\u202e" not in html


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.yaml", "The configuration cannot be shown: config.yaml"),
        ("environment.json", "Versions and seed cannot be shown: environment.json"),
        ("metrics.jsonl", "Loss curves cannot be shown: metrics.jsonl"),
        ("results/summary.json", "The results table cannot be shown: results/summary.json"),
        ("results/census", "Firing rates by side cannot be shown: results/census/*.json"),
        ("results/latents", "Latents with their contexts cannot be shown: results/latents/*.json"),
    ],
)
def test_an_absent_file_costs_only_its_section(run_dir: Path, file: str, said: str):
    path = run_dir / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    parsed = Page(html_of(run_dir))
    assert said in parsed.text
    assert parsed.open == []


@pytest.mark.parametrize("only", ["metrics.jsonl", "results/summary.json", "results/latents"])
def test_one_file_alone_is_a_report(tmp_path: Path, only: str):
    whole = make_run(tmp_path / "whole", d_sae=64, steps=3, latents=2)
    part = tmp_path / "part"
    (part / only).parent.mkdir(parents=True)
    (shutil.copytree if (whole / only).is_dir() else shutil.copy)(whole / only, part / only)
    parsed = Page(render(part).read_text(encoding="utf-8"))
    assert parsed.open == []
    for name in ARCHITECTURES:
        assert name in parsed.text


def test_a_refused_run_leaves_the_report_that_is_there(run_dir: Path):
    before = render(run_dir).read_bytes()
    (run_dir / "results/summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json: not JSON"):
        render(run_dir)
    assert (run_dir / "report/index.html").read_bytes() == before


def test_a_report_is_replaced_as_a_whole(run_dir: Path):
    render(run_dir)
    shutil.rmtree(run_dir / "results/census")
    render(run_dir)
    assert not (run_dir / "report/figures/polarity.png").exists()
    assert not [path for path in run_dir.iterdir() if path.name.endswith(".tmp")]


def test_without_matplotlib_the_error_says_what_to_install(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'sae-lens-bipolar\[reports\]'"):
        render(run_dir)
    with pytest.raises(ImportError, match="need matplotlib"):
        require_matplotlib()


def test_reports_read_without_torch(run_dir: Path):
    # The package itself imports torch to register its architectures; its reports must not need it.
    program = (
        "import sys, types; package = types.ModuleType('sae_lens_bipolar');"
        "package.__path__ = [sys.argv[1]]; sys.modules['sae_lens_bipolar'] = package;"
        "from sae_lens_bipolar.reports import render; render(sys.argv[2]);"
        "assert not {'torch', 'sae_lens', 'transformers'} & set(sys.modules)"
    )
    package = Path(sae_lens_bipolar.reports.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, str(package), str(run_dir)], check=True)
    assert (run_dir / "report/index.html").is_file()


@pytest.mark.parametrize(
    ("token", "shown", "edged"),
    [
        (" the", " the", "·the"),
        ("Ġthe", " the", "·the"),
        ("▁the", " the", "·the"),
        ("Ċ", "↵", "↵"),
        ("\n\n", "↵↵", "↵↵"),
        ("a\tb", "a⇥b", "a⇥b"),
        ("  ", "  ", "··"),
        ("", "", "∅"),
        (" a b ", " a b ", "·a b·"),
        ("\u200b", "‹U+200B›", "‹U+200B›"),
        ("é😀", "é😀", "é😀"),
    ],
)
def test_invisible_characters_are_shown(token: str, shown: str, edged: str):
    assert excerpts.visible(token) == shown
    assert excerpts.visible(token, edges=True) == edged


def test_shading_is_relative_to_the_strongest_of_its_sign():
    context = {"tokens": ["a", " b", " c", "d"], "activations": [0.0, 2.0, -1.0, 4.0], "peak": 3}
    assert excerpts.context_html(context, (4.0, 5.0)) == (
        'a <span class="p" style="--a:0.50" title="+2.00">b</span>'
        ' <span class="n" style="--a:0.20" title="−1.00">c</span>'
        '<span class="p peak" style="--a:1.00" title="+4.00">d</span>'
    )
    latent = {"contexts": {"positive": [context], "negative": []}}
    assert excerpts.strongest(latent) == (4.0, 1.0)


def test_a_long_context_is_cut_around_its_peak():
    n = 200
    tokens = [f"<{i}>" for i in range(n)]
    context = {"tokens": tokens, "activations": [0.0] * 99 + [1.0] + [0.0] * 100, "peak": 99}
    html = str(excerpts.context_html(context, (1.0, 0.0)))
    assert html.startswith(f"… &lt;{99 - excerpts.BEFORE}&gt;")
    assert html.endswith(f"&lt;{99 + excerpts.AFTER}&gt; …")


def test_histogram_has_a_bar_a_filled_bin_coloured_by_sign():
    edges = [-3.0, -1.0, 1.0, 3.0, 5.0]
    svg = str(excerpts.histogram_svg({"edges": edges, "counts": [7, 50, 0, 1]}))
    assert re.findall(r'<rect class="(.)"', svg) == ["n", "z", "p"]
    assert re.findall(r"<title>(.*?)</title>", svg) == [
        "−3.00 to −1.00: 7",
        "−1.00 to +1.00: 50",
        "+3.00 to +5.00: 1",
    ]
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights[1] > heights[0] > heights[2] > 0


def test_an_empty_histogram_is_drawn():
    assert "<rect" not in excerpts.histogram_svg({"edges": [-1, 0, 1], "counts": [0, 0]})


def test_durations_and_rates():
    assert [duration(s) for s in (0.4, 48, 252.4, 7500)] == [
        "0 s",
        "48 s",
        "4 min 12 s",
        "2 h 5 min",
    ]
    assert [percent(r) for r in (0, 0.00012, 0.0456, 0.1, 0.5)] == [
        "0%",
        "0.012%",
        "4.6%",
        "10%",
        "50%",
    ]
