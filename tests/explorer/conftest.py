"""An explorer of two small SAEs on the tiny model, and a Chromium to open it in."""

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformer_lens import HookedTransformer

from sae_lens_bipolar.explorer import ExplorerConfig, build, site
from sae_lens_bipolar.runs.sources import Source
from tests.explorer import plain

# Shown in the place of the first tokens of the vocabulary.
HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\u202etfel ot thgir",
    "\u05e9\u05dc\u05d5\u05dd",
    "\x00\x1b[31m\ud800",
    "\\xe2\\x80",
    "${window.pwned=1}`'\"&lt;",
    "\u2028\u2029",
)


@pytest.fixture(scope="session")
def two_saes(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """A signed and a non-negative SAE, saved."""
    folder = tmp_path_factory.mktemp("two-saes")
    return [plain.save(name, folder, name) for name in ("abstopk", "topk")]


@pytest.fixture(scope="session")
def explored(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: HookedTransformer,
    tiny_text: Path,
    two_saes: list[Source],
) -> Path:
    """The folder of their explorer. Do not alter it."""
    folder = tmp_path_factory.mktemp("explored") / "out"
    config = ExplorerConfig(text=str(tiny_text), tokens=3_000, context_size=32, dials=2)
    build(two_saes, tiny_model, config, folder)
    return folder


@pytest.fixture(scope="session")
def hostile(explored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with hostile texts for its most frequent tokens."""
    folder = tmp_path_factory.mktemp("hostile") / "out"
    shutil.copytree(explored, folder)
    tokens = site.get(folder, "tokens")
    tokens["texts"][: len(HOSTILE)] = HOSTILE
    site.put(folder, "tokens", tokens)
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; tests are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with api.sync_playwright() as playwright:
        try:
            sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium wants none for root
            browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        except api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Tab:
    """A page that reaches nothing but its own folder, and whose every complaint is kept."""

    def __init__(self, browser: Any, base: str, **options: Any) -> None:
        self.base, self.complaints, self.outside = base, [], []
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self._heard(message))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.context.route("**/*", self._routed)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _routed(self, route: Any) -> None:
        inside = route.request.url.startswith((self.base, "data:", "blob:"))
        if not inside:
            self.outside.append(route.request.url)
        (route.continue_ if inside else route.abort)()

    def open(self, route: str = "") -> Any:
        """Go to a view, as a link from elsewhere would, and wait until it is there."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.base}/index.html{route}")
        self.page.wait_for_selector("main h1, main table")
        return self.page

    def close(self) -> None:
        """Close the tab; it must have complained of nothing and asked for nothing outside."""
        self.context.close()
        assert self.complaints == []
        assert self.outside == []


@pytest.fixture(scope="session")
def served(explored: Path) -> Iterator[str]:
    """The address of a plain static server of the folder."""
    handler = partial(_Quiet, directory=str(explored))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(params=["file", pytest.param("http", marks=pytest.mark.slow)])
def tab(request: pytest.FixtureRequest, chromium: Any, explored: Path) -> Iterator[Tab]:
    """The explorer, opened from disk and from a static server."""
    base = explored.as_uri() if request.param == "file" else request.getfixturevalue("served")
    opened = Tab(chromium, base)
    yield opened
    opened.close()
