"""`explore --serve`: who is answered, what a request may cost, how the model is left."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.explorer import server, site
from sae_lens_bipolar.explorer.live import Limits, Live, Stop, Stopped
from sae_lens_bipolar.explorer.records import read_record
from sae_lens_bipolar.polarity.counting import CensusCounter
from sae_lens_bipolar.runs.sources import Source
from sae_lens_bipolar.steering import EditLatents, Scale, steering
from tests.explorer import plain
from tests.explorer.conftest import Tab

LIMITS = Limits(max_tokens=40, max_new_tokens=8, max_seconds=30.0, max_wait_seconds=5.0)


def hooks_of(model: HookedTransformer) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        hook for part in model.modules() for kind in kinds for hook in getattr(part, kind).values()
    ]


@pytest.fixture(scope="module")
def panels(explored: Path, tiny_model: HookedTransformer, two_saes: list[Source]) -> Live:
    return Live(explored, tiny_model, {one.name: one.load() for one in two_saes}, LIMITS)


@pytest.fixture(scope="module")
def port(panels: Live) -> Iterator[int]:
    """The port of a real server in a thread."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra explore is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    config = uvicorn.Config(
        server.application(panels), host=server.HOST, port=number, log_level="warning"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield number
    running.should_exit = True
    thread.join()


def send(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    connection.request("GET" if body is None else "POST", path, text, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if path.startswith("/api") else content.decode()


def live_latent(folder: Path, sae: str, both: bool = True) -> int:
    records = [read_record(one) for one in site.get(folder, f"{sae}/latents-0")]
    return next(
        i for i, one in enumerate(records) if any(one["largest"]) and all(one["largest"]) == both
    )


def test_only_this_host_is_answered(port: int) -> None:
    assert send(port, "/")[0] == 200
    assert send(port, "/", Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::1]"):
        assert send(port, "/", Host=host)[0] == 400
        asked = {"sae": "abstopk", "text": "the river"}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Host": host, "Content-Type": "application/json"}
        connection.request("POST", "/api/read", json.dumps(asked).encode(), headers)
        assert connection.getresponse().status == 400
        connection.close()


def test_the_page_is_the_static_one_and_knows_that_it_is_live(port: int, explored: Path) -> None:
    assert send(port, "/index.html")[1] == (explored / "index.html").read_text(encoding="utf-8")
    assert "null" in (explored / "data/live.js").read_text(encoding="ascii")
    assert '"max_new_tokens": 8' in send(port, "/data/live.js")[1]
    assert send(port, "/static/app.js")[0] == send(port, "/data/abstopk/index.js")[0] == 200
    for path in (
        "/.lock",
        "/data/../.sae-lens-bipolar",
        "/data/%2e%2e/.lock",
        "/static//etc/passwd",
    ):
        assert send(port, path)[0] in (400, 404)


def test_a_text_is_read(port: int, panels: Live, tiny_model: HookedTransformer) -> None:
    status, told = send(port, "/api/read", {"sae": "abstopk", "text": "the river returns"})
    assert status == 200
    ids = tiny_model.to_tokens("the river returns")
    z = plain.dense_latents(panels.saes["abstopk"], tiny_model, ids)[0]
    assert len(told["tokens"]) == ids.shape[1]
    for row, token in zip(z[1:], told["tokens"][1:], strict=True):  # BOS may be a sink
        assert [i for i, _ in token["latents"]] == row.abs().argsort(descending=True)[
            : len(token["latents"])
        ].tolist()
        for i, value in token["latents"]:
            assert value == pytest.approx(row[i].item(), abs=1e-3)


def test_a_latent_is_turned_beside_the_unsteered_text(
    port: int, explored: Path, panels: Live, tiny_model: HookedTransformer
) -> None:
    latent = live_latent(explored, "abstopk")
    asked = {"sae": "abstopk", "latent": latent, "prompt": "the river", "max_new_tokens": 8}
    status, told = send(port, "/api/steer", {**asked, "value": -1})
    assert status == 200
    assert told["extrapolated"] is False
    # The same by the steering of this package, in its own words for it.
    largest = read_record(site.get(explored, "abstopk/latents-0")[latent])["largest"]
    counter = CensusCounter(80)
    counter.add(torch.zeros(1, 80).index_fill(1, torch.tensor([latent]), largest[0]))
    counter.add(torch.zeros(1, 80).index_fill(1, torch.tensor([latent]), -largest[1]))
    edit = EditLatents(
        panels.saes["abstopk"], {latent: -1.0}, mode="dial", scale=Scale(counter.result())
    )
    ids = tiny_model.to_tokens("the river")
    options: dict[str, Any] = {"do_sample": False, "prepend_bos": False, "verbose": False}
    decode = tiny_model.tokenizer.decode  # type: ignore[union-attr]
    with torch.no_grad():
        unsteered: Any = tiny_model.generate(ids, max_new_tokens=8, **options)
        with steering(tiny_model, edit):
            steered: Any = tiny_model.generate(ids, max_new_tokens=8, **options)
    assert told["unsteered"] == decode(unsteered[0, ids.shape[1] :], skip_special_tokens=True)
    assert told["steered"] == decode(steered[0, ids.shape[1] :], skip_special_tokens=True)
    zero = send(port, "/api/steer", {**asked, "value": 0})[1]
    assert told["cost"] != zero["cost"]
    one_sided = live_latent(explored, "topk", both=False)
    other = {**asked, "sae": "topk", "latent": one_sided, "value": -0.5}
    assert send(port, "/api/steer", other)[1]["extrapolated"] is True


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/read", {"sae": "abstopk", "text": "the river " * 60}, "at most 40"),
        ("/api/read", {"sae": "other", "text": "a"}, "there are abstopk, topk"),
        ("/api/read", {"sae": "abstopk"}, "text must be"),
        ("/api/read", {"sae": ["abstopk"], "text": "a"}, "there are"),
        ("/api/read", b"{", "not JSON"),
        ("/api/read", b"[" * 100_000, "larger than"),
        ("/api/read", b"[" * 60_000, "not JSON"),
        ("/api/read", [1], "JSON object"),
        ("/api/steer", {"sae": "abstopk", "prompt": "a", "value": 2}, "value"),
        ("/api/steer", {"sae": "abstopk", "prompt": "a", "value": None}, "value"),
        ("/api/steer", {"sae": "abstopk", "prompt": "a", "value": 1, "latent": 80}, "0 to 79"),
        ("/api/steer", {"sae": "abstopk", "prompt": "a", "value": 1, "latent": True}, "0 to 79"),
        (
            "/api/steer",
            {"sae": "abstopk", "prompt": "a", "value": 1, "latent": 1, "max_new_tokens": 9},
            "max_new_tokens",
        ),
    ],
)
def test_what_is_not_allowed_is_refused_in_a_sentence(
    port: int, path: str, body: Any, words: str
) -> None:
    status, told = send(port, path, body)
    assert status == 400
    assert words in told["error"]


def test_a_form_of_another_site_is_refused(port: int) -> None:
    body = json.dumps({"sae": "abstopk", "text": "a"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, told = send(port, "/api/read", body, Content_Type=kind)
        assert status == 400
        assert "application/json" in told["error"]


def test_a_cancelled_request_stops_and_the_next_is_answered(
    port: int, explored: Path, panels: Live, tiny_model: HookedTransformer, monkeypatch: Any
) -> None:
    before = hooks_of(tiny_model)
    checks: list[float] = []
    check = Stop.check

    def slow(self: Stop) -> None:
        checks.append(time.monotonic())
        time.sleep(0.3)
        check(self)

    monkeypatch.setattr(Stop, "check", slow)
    latent = live_latent(explored, "abstopk")
    asked = {"sae": "abstopk", "latent": latent, "value": 1, "prompt": "the", "max_new_tokens": 8}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps(asked).encode()
    connection.request("POST", "/api/steer", body, {"Content-Type": "application/json"})
    while len(checks) < 2:
        time.sleep(0.02)
    connection.close()  # the reader goes away in the middle of a text
    time.sleep(1.5)
    stopped = len(checks)
    assert stopped < 8  # a whole one has 18 passes
    monkeypatch.setattr(Stop, "check", check)
    assert send(port, "/api/read", {"sae": "abstopk", "text": "the river"})[0] == 200
    assert len(checks) == stopped
    assert hooks_of(tiny_model) == before


def test_time_is_limited_and_a_busy_model_says_so(
    port: int, explored: Path, panels: Live, tiny_model: HookedTransformer
) -> None:
    before = hooks_of(tiny_model)
    latent = live_latent(explored, "abstopk")
    asked = {"sae": "abstopk", "latent": latent, "value": 1, "prompt": "the"}
    with pytest.raises(Stopped, match="longer than"):
        panels.steer(asked, Stop(seconds=0.0))
    cancelled = Stop(seconds=60)
    cancelled.set()
    with pytest.raises(Stopped, match="cancelled"):
        panels.read({"sae": "abstopk", "text": "a"}, cancelled)
    assert hooks_of(tiny_model) == before
    with panels._lock:
        status, told = send(port, "/api/read", {"sae": "abstopk", "text": "a"})
    assert status == 503
    assert "busy" in told["error"]
    assert send(port, "/api/read", {"sae": "abstopk", "text": "a"})[0] == 200


def test_a_failing_pass_leaves_the_model_unhooked(
    explored: Path, panels: Live, tiny_model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hooks_of(tiny_model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Live, "_log_probabilities", fail)
    latent = live_latent(explored, "abstopk")
    with pytest.raises(RuntimeError, match="out of memory"):
        panels.steer(
            {"sae": "abstopk", "latent": latent, "value": 1, "prompt": "the"}, Stop(seconds=60)
        )
    assert hooks_of(tiny_model) == before
    assert not panels._lock.locked()


def test_a_missing_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"sae-lens-bipolar\[explore\]"):
        server.require_server()


@pytest.mark.slow
def test_the_live_panels_in_a_browser(
    chromium: Any, port: int, explored: Path, tiny_model: HookedTransformer
) -> None:
    before = hooks_of(tiny_model)
    tab = Tab(chromium, f"http://127.0.0.1:{port}")
    page = tab.open("#live/abstopk")
    page.fill("textarea", "the river returns")
    page.click("button:has-text('read')")
    page.wait_for_selector(".read button")
    page.click(".read button >> nth=2")
    page.wait_for_selector(".side .firing li")
    latent = live_latent(explored, "abstopk")
    page = tab.open(f"#latent/abstopk/{latent}")
    page.fill(".steer input[type=text]", "the river")
    page.locator(".steer input[type=range]").fill("-1")
    page.click("button:has-text('steer')")
    page.wait_for_selector(".texts")
    assert "unsteered" in page.inner_text(".texts")
    assert "nats per token" in page.inner_text(".steer [role=status]")
    page.fill(".steer input[type=text]", "the river " * 60)
    page.click("button:has-text('steer')")
    page.wait_for_selector(".steer [role=alert]:has-text('at most')")
    assert [text for text in tab.complaints if "400" not in text] == []
    tab.complaints.clear()  # Chromium notes an answer of 400 in its console
    tab.close()
    assert hooks_of(tiny_model) == before
