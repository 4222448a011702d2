"""A Hub with everything the seven suites read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.fake.clients import clients_at
from tests.hub.fake.server import HubServer
from tests.saebench.suite_data import FORGET_TOKEN, serve_suite_data

# What is tested without SAEBench (the `bench` extra) installed.
_WITHOUT_SAEBENCH = ("test_results_tables", "test_suites_protocols")


@pytest.fixture(autouse=True, scope="module")
def sae_bench(request: pytest.FixtureRequest) -> None:
    """Skip a module's tests where SAEBench is missing and they run it."""
    if request.module.__name__ not in _WITHOUT_SAEBENCH:
        pytest.importorskip("sae_bench")


@pytest.fixture(scope="session")
def suite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Path]]:
    """The tests' Hub with the suites' data, and a directory for its clients' caches."""
    with HubServer() as hub:
        serve_suite_data(hub)
        yield hub, tmp_path_factory.mktemp("hub-caches")


# A module at a time: other modules' tests, which may follow in this process, are offline.
@pytest.fixture(scope="module")
def suite_hub(suite_server: tuple[HubServer, Path]) -> Iterator[HubServer]:
    """The tests' Hub with the suites' data; in this process and its children it is *the* Hub.

    Caches lie in a temporary directory, and the token is one that may read the gated forget
    corpus. At the end environment and libraries are as before, offline.
    """
    hub, caches = suite_server
    with clients_at(hub, caches, token=FORGET_TOKEN):
        yield hub
