"""The page in a real Chromium, from disk and over http, with the network blocked."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.explorer import site
from sae_lens_bipolar.explorer.config import TOKEN_SHARD
from sae_lens_bipolar.explorer.packing import unpack
from sae_lens_bipolar.explorer.records import read_record
from tests.explorer.conftest import HOSTILE, Tab

slow = pytest.mark.slow


def rank_of(folder: Path, text: str) -> int:
    return site.get(folder, "tokens")["texts"].index(text)


def word_entries(folder: Path, sae: str, text: str) -> list[tuple[int, int]]:
    """(latent, side) that fire on a token, the strongest first."""
    rank = rank_of(folder, text)
    packed = site.get(folder, f"{sae}/words-{rank // TOKEN_SHARD}")[rank % TOKEN_SHARD]
    keys = unpack(packed)[1::3]
    return [(key // 2, key % 2) for key in keys]


def latents_shown(page: Any) -> list[int]:
    return [
        int(row.get_attribute("data-latent")) for row in page.query_selector_all("tr[data-latent]")
    ]


def test_a_token_is_searched_and_both_sides_of_its_latents_are_read(
    tab: Tab, explored: Path
) -> None:
    page = tab.open()
    assert len(latents_shown(page)) > 20
    page.fill("#search", " river")
    page.press("#search", "Enter")
    page.wait_for_selector(".note:has-text('that fire on')")
    entries = word_entries(explored, "abstopk", " river")
    assert latents_shown(page)[0] == entries[0][0]
    assert set(latents_shown(page)) == {latent for latent, _ in entries}
    page.click("tr[data-latent] .latent-link")
    page.wait_for_selector("article.latent")
    latent = entries[0][0]
    assert page.inner_text("h1").startswith(f"Latent {latent}")
    record = read_record(site.get(explored, "abstopk/latents-0")[latent])
    left, right = (
        box["x"] for box in (page.locator(f".side.{s}").bounding_box() for s in ("neg", "pos"))
    )
    assert left < right
    for side, name in enumerate(("pos", "neg")):
        shown = page.locator(f".side.{name} .context")
        assert shown.count() == len(record["contexts"][side])
    side = 0 if record["contexts"][0] else 1
    texts = site.get(explored, "tokens")["texts"]
    context = record["contexts"][side][0]
    wanted = "".join(texts[rank] for rank in context["tokens"]).replace("\n", "⏎ ")
    said = page.locator(f".side.{('pos', 'neg')[side]} .context q").first.text_content()
    assert said == wanted
    peak = page.locator(f".side.{('pos', 'neg')[side]} .context .peak").first.text_content()
    assert peak == texts[context["tokens"][context["before"]]]


def test_hostile_tokens_are_text(chromium: Any, hostile: Path) -> None:
    tab = Tab(chromium, hostile.as_uri())
    ids = unpack(site.get(hostile, "tokens")["ids"])
    for rank in range(len(HOSTILE)):
        page = tab.open(f"#token/abstopk/{ids[rank]}")
        page.wait_for_selector("h1 .token")
    said = tab.open(f"#token/abstopk/{ids[0]}").inner_text("h1 .token")
    assert said == HOSTILE[0]
    assert tab.open(f"#token/abstopk/{ids[2]}").inner_text(
        "h1 .token"
    ) == "\\u202etfel·ot·thgir".replace("·", " ")
    assert (
        tab.open(f"#token/abstopk/{ids[4]}").inner_text("h1 .token") == "\\u0000\\u001b[31m\\ud800"
    )
    page = tab.open("#latents/abstopk")
    page.fill("#search", HOSTILE[1])
    page.press("#search", "Enter")
    page.wait_for_selector(".note:has-text('<img src=x')")
    page = tab.open("#latent/abstopk/" + str(latents_shown(page)[0]))
    page.wait_for_selector(".context")
    page = tab.open("#latents/abstopk/" + "%3Cscript%3Ewindow.pwned%3D1%3C%2Fscript%3E%zz")
    assert page.evaluate("window.pwned") is None
    assert page.query_selector_all("main img, main script") == []
    tab.close()


@slow
def test_every_view_has_an_address_that_can_be_kept(tab: Tab, explored: Path) -> None:
    ids = unpack(site.get(explored, "tokens")["ids"])
    river, letters = (ids[rank_of(explored, word)] for word in (" river", " letters"))
    latent = word_entries(explored, "abstopk", " river")[0][0]
    page = tab.open(f"#latent/abstopk/{latent}")
    assert f"Latent {latent}" in page.inner_text("h1")
    page.reload()
    page.wait_for_selector("h1")
    assert f"Latent {latent}" in page.inner_text("h1")
    assert "river" in tab.open(f"#token/abstopk/{river}").inner_text("h1")
    assert tab.open(f"#words/abstopk/{river}/{letters}").locator("table.words tbody tr").count() > 5
    assert tab.open("#compare/abstopk/topk").locator("table.compare tbody tr").count() > 5
    assert tab.open("#dials/abstopk").locator(".dial").count() == 2
    assert tab.open("#latents/topk/%20river").locator("tr[data-latent]").count() > 2
    page.evaluate("location.hash = '#latent/abstopk/80'")
    page.wait_for_selector("[role=alert]:has-text('has latents 0 to 79')")


@slow
def test_words_that_turn_a_sign_come_first(tab: Tab, explored: Path) -> None:
    texts, found = site.get(explored, "tokens")["texts"], None
    ids = unpack(site.get(explored, "tokens")["ids"])
    words = [
        word
        for word in (" river", " teacher", " letters", " winter", " rain", " war")
        if word in texts
    ]
    for a in words:
        for b in words:
            first, second = (dict(word_entries(explored, "abstopk", word)) for word in (a, b))
            if any(first[i] != second[i] for i in first.keys() & second.keys()):
                found = (a, b)
    assert found, "no two words of this text turn a sign"
    page = tab.open("#words/abstopk/" + "/".join(str(ids[texts.index(word)]) for word in found))
    flips = page.locator("table.words tbody tr").evaluate_all(
        "rows => rows.map(row => row.classList.contains('flips'))"
    )
    assert flips[0]
    assert flips == sorted(flips, reverse=True)
    page = tab.open("#words/abstopk")
    for box, word in zip(page.locator(".token-box input").all(), found, strict=True):
        box.fill(word)
        box.press("Enter")
    page.wait_for_selector("table.words tr.flips")


@slow
def test_two_saes_are_compared(tab: Tab, explored: Path) -> None:
    page = tab.open("#compare/abstopk/topk")
    first = page.locator("table.compare tbody tr").first.inner_text()
    page.select_option("label:has-text('sort by') select", "number")
    page.evaluate(  # not wait_for_function, which evaluates strings: the page's policy refuses it
        """before => new Promise(done => {
          const look = () =>
            document.querySelector("table.compare tbody tr").innerText !== before
              ? done() : setTimeout(look, 10);
          look();
        })""",
        first,
    )
    row = page.locator("table.compare tbody tr").first
    latent = int(row.locator(".middle .latent-link").inner_text().strip("#"))
    numbers = unpack(site.get(explored, "abstopk/with-topk")[latent])
    against, along = numbers[4], numbers[0]
    assert row.locator(".latent-link").all_inner_texts() == [
        f"#{against}",
        f"#{latent}",
        f"#{along}",
    ]
    page.select_option("label:has-text('SAE') select", "topk")
    page.wait_for_selector("h1:has-text('topk against abstopk')")


@slow
def test_sorting_and_filters_choose_what_they_say(tab: Tab, explored: Path) -> None:
    index = {key: unpack(value) for key, value in site.get(explored, "abstopk/index").items()}
    plus, minus = index["positive_count"], index["negative_count"]
    page = tab.open()
    wanted = {
        "both": [i for i in range(80) if plus[i] and minus[i]],
        "negative": [i for i in range(80) if minus[i] and not plus[i]],
        "positive": [i for i in range(80) if plus[i] and not minus[i]],
        "dead": [i for i in range(80) if not plus[i] and not minus[i]],
    }
    page.select_option("label:has-text('sort by') select", "number")
    for kind, latents in wanted.items():
        page.select_option("label:has-text('show') select", kind)
        page.wait_for_selector(f".note:has-text('{len(latents)} latents')")
        page.wait_for_timeout(100)
        assert latents_shown(page) == latents[:50]
    page.select_option("label:has-text('show') select", "all")
    page.select_option("label:has-text('sort by') select", "rate")
    page.wait_for_timeout(300)
    order = sorted(range(80), key=lambda i: (-(plus[i] + minus[i]), i))
    assert latents_shown(page) == order[:50]
    page.click("text=show more")
    page.wait_for_timeout(300)
    assert latents_shown(page) == order
    page.select_option("label:has-text('balance') >> nth=-1 >> select", "0.6")
    page.wait_for_timeout(300)
    assert latents_shown(page) == [
        i for i in order if min(plus[i], minus[i]) >= 0.6 * max(plus[i], minus[i], 1)
    ]


@slow
def test_everything_is_reached_by_keyboard(tab: Tab) -> None:
    page = tab.open()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("#7")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Latent 7')")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:has-text('Latent 8')")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("h1:has-text('Latent 6')")
    page.keyboard.press("b")
    page.wait_for_selector(".bookmark[aria-pressed=true]")
    page.keyboard.press("n")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.keyboard.type("about b and /")
    page.keyboard.press("Tab")
    page.keyboard.press("?")
    page.wait_for_selector("[role=dialog]")
    page.keyboard.press("Escape")
    page.wait_for_selector("[role=dialog]", state="detached")
    page = tab.open()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    first = latents_shown(page)[0]
    assert page.evaluate("document.activeElement.textContent") == f"#{first}"
    page.keyboard.press("Enter")
    page.wait_for_selector(f"h1:has-text('Latent {first}')")


@slow
def test_notes_are_kept_saved_and_read(tab: Tab, tmp_path: Path) -> None:
    page = tab.open("#latent/abstopk/5")
    page.fill(".note-box textarea", "<b>rivers</b> \u202e")
    page.click(".bookmark")
    page = tab.open("#notes/abstopk")
    assert "<b>rivers</b>" in page.inner_text(".notes")
    with page.expect_download() as saved:
        page.click("text=save as JSON")
    saved.value.save_as(tmp_path / "notes.json")
    value = json.loads((tmp_path / "notes.json").read_text(encoding="utf-8"))
    (note,) = value["notes"]
    assert (note["sae"], note["latent"], note["bookmark"]) == ("abstopk", 5, True)
    page.evaluate("localStorage.clear()")
    page = tab.open("#notes/abstopk")
    page.reload()
    page.wait_for_selector("text=Nothing is noted yet")
    page.set_input_files("input[type=file]", tmp_path / "notes.json")
    page.wait_for_selector("text=1 notes read")
    assert "#5" in page.inner_text(".notes")
    (tmp_path / "bad.json").write_text('{"format": 1, "notes": [{"sae": 1}]}')
    page.set_input_files("input[type=file]", tmp_path / "bad.json")
    page.wait_for_selector("text=not read")


@slow
def test_texts_are_found_by_their_tokens(tab: Tab, explored: Path) -> None:
    page = tab.open()
    page.fill("#search", "the river")
    page.press("#search", "Enter")
    page.wait_for_selector(".note:has-text('that fire on')")
    chips = page.locator(".note .token").all_inner_texts()
    assert chips == ["·the", "·river"]
    sets = [{i for i, _ in word_entries(explored, "abstopk", word)} for word in (" the", " river")]
    shown = set(latents_shown(page))
    assert shown == (sets[0] & sets[1] or sets[0] | sets[1])
    page.fill("#search", "rivr")  # nearly a token
    page.wait_for_selector(".suggestions.floating button:has-text('river')")
    page.fill("#search", "zzzzqqq")
    page.press("#search", "Enter")
    page.wait_for_selector("text=No token of the text is like")
