"""A Hub with everything the seven suites read."""

from collections.abc import Iterator

import pytest
from hub_clients import clients_at
from hub_server import HubServer
from suite_data import FORGET_TOKEN, serve_suite_data


@pytest.fixture(scope="session")
def suite_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The tests' Hub with the suites' data; in this process and its children it is *the* Hub.

    Caches lie in a temporary directory, and the token is one that may read the gated forget
    corpus. At the end environment and libraries are as before, offline.
    """
    with HubServer() as hub:
        serve_suite_data(hub)
        with clients_at(hub, tmp_path_factory.mktemp("hub-caches"), token=FORGET_TOKEN):
            yield hub
