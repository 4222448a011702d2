"""The Hub's faults in words a user can act on, and which of them are worth another try."""

import errno
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sae_lens_bipolar.errors import BipolarError, HubError
from sae_lens_bipolar.files.redaction import without_secrets
from sae_lens_bipolar.inputs.fetch import say

T = TypeVar("T")

WAITS = (1.0, 4.0, 15.0)  # seconds before each further try
_LONGEST_WAIT = 120.0  # if the Hub asks for more, say so instead of waiting
_PASSING = (408, 425, 429, 500, 502, 503, 504)
# Each version of the client brings its own HTTP library, with exceptions of its own.
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_SAID_AT_MOST = 400  # characters of the Hub's own words


def ask(doing: str, repo_id: str, call: Callable[[], T]) -> T:
    """`call()`, tried again at most `len(WAITS)` times after what may pass.

    That is a network that fails or times out, and answers 408, 425, 429 and 5xx; the client has
    tried single requests again before. What the Hub asks for in `Retry-After` is waited for.

    Raises:
        HubError: saying what was being done, what is wrong and what to do; never a token. The
            client's own exception is not chained: it holds the request with its headers.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except BipolarError:
            raise
        except Exception as error:
            status = _status(error)
            wait = wait and max(wait, _retry_after(error))
            if wait is None or wait > _LONGEST_WAIT or not _may_pass(error, status):
                raise HubError(f"{doing}: {explain(error, repo_id)}") from None
            say(f"{doing}: {_brief(error, status)}; trying again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("unreachable")  # the last wait is None


def explain(error: BaseException, repo_id: str) -> str:
    """What is wrong and what to do, without tokens or signatures."""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set: unset it to publish"
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return "no space left on this machine's disk: free some and run the command again"
    status, said = _status(error), _said(error)
    remedy = {
        400: f"the Hub does not accept it ({said})",
        401: "the Hub does not accept your login (401): run `hf auth login` with a token that is "
        "valid, or set HF_TOKEN",
        403: f"your token may not do this to {repo_id} (403; {said}): it needs write access to "
        "that user or organisation (https://huggingface.co/settings/tokens)",
        404: f"{repo_id} or that revision does not exist, or your token may not see it (404): "
        "check owner and name, and that the token may write there",
        409: f"the Hub reports a conflict (409; {said}): run the command again",
        412: f"somebody else committed to {repo_id} meanwhile (412): run the command again",
        413: f"the Hub finds it too large (413; {said})",
        429: "the Hub limits your rate (429): wait a few minutes and run the command again; what "
        "was uploaded is kept",
    }.get(status or 0)
    if remedy:
        return remedy
    if status and status >= 500:
        return (
            f"the Hub fails ({status}): see https://status.huggingface.co and run the command "
            "again later; what was uploaded is kept"
        )
    if _is_network(error):
        return (
            f"the Hub cannot be reached or does not answer ({type(error).__name__}): check the "
            "network, HF_ENDPOINT and proxies, and run the command again; what was uploaded is kept"
        )
    return f"{type(error).__name__}: {said}"


def _may_pass(error: BaseException, status: int | None) -> bool:
    return status in _PASSING if status else _is_network(error)


def _is_network(error: BaseException) -> bool:
    return any(
        isinstance(cause, (ConnectionError, TimeoutError))
        or type(cause).__module__.split(".")[0] in _HTTP_LIBRARIES
        or type(cause).__name__ == "LocalEntryNotFoundError"  # a download without a network
        or "Consistency check failed" in str(cause)  # a download that was cut off
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    for cause in _causes(error):
        code = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(code, int):
            return code
    return None


def _retry_after(error: BaseException) -> float:
    response: Any = getattr(error, "response", None)
    value = getattr(response, "headers", {}).get("Retry-After", "0")
    return float(value) if value.isdigit() else 0.0


def _said(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(without_secrets(said).split())[:_SAID_AT_MOST]


def _brief(error: BaseException, status: int | None) -> str:
    return f"the Hub answered {status}" if status else f"no answer ({type(error).__name__})"
