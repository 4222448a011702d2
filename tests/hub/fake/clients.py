"""Point the real Hub clients at a `HubServer`, in this process or another.

`huggingface_hub.constants` and `datasets.config` read the environment once, at import, and other
modules copy some of those values. So `clients_at` changes the environment, runs the source of the
two modules again under another name, and puts every value that came out differently into the real
module and wherever else it was copied under the same name; on the way out everything is put back.
No list of names has to be kept, and a new constant of a new version is handled like the others.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
from huggingface_hub import hf_api, utils
from huggingface_hub.utils import _http, get_session
from transformers.utils import hub as transformers_hub

from tests.hub.fake.server import HubServer

# The HTTP library of this huggingface_hub: httpx2 from 2.0 on, httpx from 1.0 on, requests before.
http = importlib.import_module(type(get_session()).__module__.partition(".")[0])
NetworkError: type[Exception] = getattr(http, "TransportError", None) or http.RequestException
Timeout: type[Exception] = getattr(http, "TimeoutException", None) or http.Timeout
close_session: Any = getattr(huggingface_hub, "close_session", None) or utils.reset_sessions

_CLIENTS = ("huggingface_hub", "datasets", "transformers", "sae_lens", "sae_lens_bipolar")
_READ_ONCE = ("huggingface_hub.constants", "datasets.config")


def client_environment(
    hub: HubServer,
    home: Path,
    token: str | None = None,
    timeout_seconds: int = 10,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment variables of a process whose Hub is `hub` and whose caches lie under `home`.

    `base` (default: this process's environment) gives the other variables. Without a token, none
    is found either: the file that would hold it lies under `home` as well.
    """
    keep = {
        name: value
        for name, value in (os.environ if base is None else base).items()
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    changes = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_ETAG_TIMEOUT": str(timeout_seconds),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(timeout_seconds),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return keep | changes | ({"HF_TOKEN": token} if token else {})


@contextmanager
def clients_at(
    hub: HubServer, home: Path, token: str | None = None, timeout_seconds: int = 10
) -> Iterator[None]:
    """Within the context, this process's Hub is `hub` and its caches lie under `home`."""
    before = dict(os.environ)
    modules = [importlib.import_module(name) for name in _READ_ONCE]  # with the old environment
    origins = getattr(_http, "_HUB_ORIGINS", None)  # of clients that compare a token's receiver
    changed: dict[str, tuple[Any, Any]] = {}
    undo: list[tuple[ModuleType, str, Any]] = []
    try:
        os.environ.clear()
        os.environ.update(client_environment(hub, home, token, timeout_seconds, base=before))
        for module in modules:  # in order: the second reads the first
            fresh = _reread(module)
            for name, value in vars(module).items():
                if name in fresh and _differs(value, fresh[name]):
                    changed[name] = value, fresh[name]
            undo += _replace(changed)
        before_5: Any = transformers_hub
        if hasattr(before_5, "_is_offline_mode"):  # transformers 4 reads it once as well
            undo.append((before_5, "_is_offline_mode", before_5._is_offline_mode))
            before_5._is_offline_mode = False
        if origins is not None:
            _http._HUB_ORIGINS = origins | {_http._url_origin(hub.endpoint)}
        _forget_clients(hub.endpoint)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for module, name, value in reversed(undo):
            setattr(module, name, value)
        # Modules first imported inside the context copied the new values.
        _replace({name: (new, old) for name, (old, new) in changed.items()})
        if origins is not None:
            _http._HUB_ORIGINS = origins
        _forget_clients(modules[0].ENDPOINT)


def _reread(module: ModuleType) -> dict[str, Any]:
    """The names that a module's source binds in the environment of this moment."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"_reread.{module.__name__}", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return {name: value for name, value in vars(fresh).items() if not name.startswith("__")}


def _differs(old: Any, new: Any) -> bool:
    plain = (str, bool, int, float, Path, frozenset, type(None))
    return isinstance(old, plain) and isinstance(new, plain) and old != new


def _replace(changed: dict[str, tuple[Any, Any]]) -> list[tuple[ModuleType, str, Any]]:
    """Set name -> (old, new) in every client module that binds `name` to old; what was there."""
    done = []
    for module_name, module in [*sys.modules.items()]:
        if module_name.split(".")[0] not in _CLIENTS or not isinstance(module, ModuleType):
            continue
        for name in vars(module).keys() & changed.keys():
            old, new = changed[name]
            value = vars(module)[name]
            if type(value) is type(old) and value == old:
                done.append((module, name, value))
                setattr(module, name, new)
    return done


def _forget_clients(endpoint: str) -> None:
    """Drop what the clients keep between calls: session, file systems, the shared HfApi's host."""
    hf_api.api.endpoint = endpoint
    close_session()
    huggingface_hub.HfFileSystem.clear_instance_cache()
    # Code of data sets is imported from below a home; another home's would be found in its place.
    for name in [name for name in sys.modules if name.partition(".")[0] == "datasets_modules"]:
        del sys.modules[name]
    sys.path[:] = [p for p in sys.path if not (p and (Path(p) / "datasets_modules").is_dir())]
    importlib.invalidate_caches()
