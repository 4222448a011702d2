"""Faults the test Hub can be told to show, each a given number of times."""

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

FaultKind = Literal["status", "timeout", "hangup", "lost", "reset", "cut", "truncate", "flip"]

_WITHOUT_BODY = {  # methods that have nothing this kind could break
    "reset": ("HEAD", "DELETE"),
    "cut": ("HEAD", "DELETE"),
    "truncate": ("HEAD", "DELETE", "POST", "PUT"),
    "flip": ("HEAD", "DELETE", "POST", "PUT"),
}


@dataclass
class Fault:
    """What goes wrong, for which requests, and how often.

    kind:
        status    the answer `status`, with Retry-After when `retry_after` is set
        timeout   no answer for `seconds`, then the connection closes
        hangup    the connection closes before any answer, and nothing is done
        lost      the request is carried out, and its answer lost: the connection closes
        reset     RST half-way through the body: the answer's for GET, else the request's
        cut       the same with an orderly FIN
        truncate  half the body with a Content-Length that says so: only the size betrays it
        flip      one bit of the body differs, at the right length: only a hash betrays it
    """

    kind: FaultKind
    pattern: str = ""  # a regular expression, searched in "METHOD /path?query"
    times: int | None = 1  # how often it shows; None: always
    after: int = 0  # matching requests that pass first
    status: int = 500  # HTTP status of kind "status"
    retry_after: int | None = None  # seconds, kind "status"
    seconds: float = 30.0  # kind "timeout"
    storage: bool | None = None  # True: only the storage host, False: only the Hub, None: both
    shown: int = field(default=0, init=False)  # how often it has shown
    _seen: int = field(default=0, init=False, repr=False)


class Faults:
    """The faults in force; the first that matches a request shows."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def matching(self, method: str, target: str, storage: bool) -> Fault | None:
        """The fault this request meets, counted as shown; None when it is to succeed."""
        with self._lock:
            for fault in self._faults:
                if fault.storage not in (None, storage):
                    continue
                if not re.search(fault.pattern, f"{method} {target}"):
                    continue
                if method in _WITHOUT_BODY.get(fault.kind, ()):
                    continue
                fault._seen += 1
                if fault._seen <= fault.after or fault.shown == fault.times:
                    continue
                fault.shown += 1
                return fault
        return None
