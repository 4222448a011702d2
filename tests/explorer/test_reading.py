"""That the page can be read: names of controls, contrast, focus, a narrow screen, both themes."""

from pathlib import Path
from typing import Any

import pytest

from tests.explorer.conftest import Tab

pytestmark = pytest.mark.slow
VIEWS = ("latents/abstopk", "latent/abstopk/7", "words/abstopk", "compare/abstopk/topk")
VIEWS += ("dials/abstopk", "notes/abstopk", "latents/abstopk/%20river")

CHECKS = (Path(__file__).parent / "reading.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_controls_have_names(
    chromium: Any, explored: Path, scheme: str
) -> None:
    tab = Tab(chromium, explored.as_uri(), color_scheme=scheme)
    for view in VIEWS:
        page = tab.open(f"#{view}")
        page.wait_for_timeout(200)
        ratio, where = page.evaluate(f"{CHECKS} contrast()")
        assert ratio >= 4.5, (view, where, ratio)
        assert page.evaluate(f"{CHECKS} unnamed()") == [], view
    tab.close()


def test_the_theme_can_be_chosen_and_is_kept(chromium: Any, explored: Path) -> None:
    tab = Tab(chromium, explored.as_uri(), color_scheme="light")
    page = tab.open()
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.select_option("label:has-text('theme') select", "dark")
    assert page.evaluate(colour) != light
    page = tab.open("#notes/abstopk")
    assert page.evaluate(colour) != light
    tab.close()


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_screen_shows_all_without_scrolling_sideways(
    chromium: Any, explored: Path, view: str
) -> None:
    tab = Tab(chromium, explored.as_uri(), viewport={"width": 390, "height": 844})
    page = tab.open(f"#{view}")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    if view.startswith("latent/"):
        left, right = (page.locator(f".side.{side}").bounding_box()["x"] for side in ("neg", "pos"))
        assert left < right  # side by side, also here
    tab.close()


def test_the_focus_can_be_seen(chromium: Any, explored: Path) -> None:
    tab = Tab(chromium, explored.as_uri())
    page = tab.open("#latent/abstopk/7")
    unseen = []
    for _ in range(25):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if style[0] != "BODY" and (style[1] == "none" or style[2] < 1):
            unseen.append(style)
    assert unseen == []
    tab.close()
