"""A Hugging Face Hub on 127.0.0.1, for the real client libraries.

It speaks as much of the Hub's HTTP API as `huggingface_hub`, `datasets` and `transformers` use to
download (`resolve` with ETag, X-Repo-Commit and Range; `tree` in pages; `paths-info`; repository
infos), to upload (`repos/create`, `preupload`, LFS batch, PUT and verify, NDJSON `commit`, branches
and tags) and to ask who one is. Large files live on a second host, as on the real Hub: their URLs
are signed, and a token sent there is a leak. Xet is not spoken: clients must switch it off.

    with HubServer() as hub:
        hub.add_user("ada", token="hf_ada")
        hub.add_repository("ada/tiny", {"config.json": "{}"})
        hub.inject("status", r"GET .*config\\.json", status=503, times=1)
        with clients_at(hub, home=tmp_path, token="hf_ada"):  # in this process (fake.clients)
            hf_hub_download("ada/tiny", "config.json")
        subprocess.run(..., env=client_environment(hub, home))  # or in another
        assert [r.status for r in hub.calls("config.json")] == [200, 503, 200]
"""

import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlsplit

from typing_extensions import Self

import tests.hub.fake.admin_routes  # noqa: F401  (registers its routes after those of routes)
from tests.hub.fake.cards import LICENCES
from tests.hub.fake.faults import Fault, FaultKind, Faults
from tests.hub.fake.repositories import Commit, HubError, Repository, RepoType, make_blob
from tests.hub.fake.routes import Request, Response, User, answer, as_json


@dataclass(frozen=True)
class Call:
    """One request as it came in, and what became of it."""

    method: str
    target: str  # path and query, percent-encoded
    storage: bool  # it came to the host of the large files
    token: str | None  # of its Authorization header
    agent: str  # its User-Agent
    size: int  # bytes of its body
    status: int | None  # of the answer; None when there was none
    fault: FaultKind | None


class HubServer:
    """The server: repositories, users, faults and what was asked. Use it as a context manager."""

    def __init__(self, page_size: int = 1000) -> None:
        self.page_size = page_size  # entries of one page of `tree`
        self.licences: frozenset[str] = frozenset(LICENCES)
        self.repositories: dict[tuple[RepoType, str], Repository] = {}
        self.moved: dict[tuple[RepoType, str], str] = {}  # old id -> new id, answered with 307
        self.users: dict[str, User] = {}  # by token
        self.storage: dict[str, bytes] = {}  # large files by SHA-256
        self.requests: list[Call] = []
        self.faults = Faults()
        self.closing = threading.Event()
        self._web, self._store = _Listener(self, storage=False), _Listener(self, storage=True)

    def __enter__(self) -> Self:
        for listener in (self._web, self._store):
            threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for listener in (self._web, self._store):
            listener.shutdown()
            listener.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._web.server_address[1]}"

    def web_url(self, repo: Repository) -> str:
        kind = "" if repo.repo_type == "model" else f"{repo.repo_type}s/"
        return f"{self.endpoint}/{kind}{repo.repo_id}"

    def storage_url(self, sha256: str, filename: str) -> str:
        """A signed URL of a large file, to GET or PUT."""
        port = self._store.server_address[1]
        signature = hashlib.sha256(f"signed {sha256}".encode()).hexdigest()[:16]
        query = f"filename={quote(filename)}&signature={signature}"
        return f"http://127.0.0.1:{port}/large/{sha256}?{query}"

    def add_user(
        self, name: str, token: str, role: str = "write", organizations: tuple[str, ...] = ()
    ) -> User:
        """An account and its token; role "read" may not write."""
        self.users[token] = User(name, role, organizations)
        return self.users[token]

    def add_repository(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str | Path],
        *,
        repo_type: RepoType = "model",
        private: bool = False,
        gated: bool = False,
        granted: set[str] | None = None,
    ) -> Repository:
        """A new repository with `files` in one commit on main."""
        repo = Repository(repo_id, repo_type, private, gated, granted or set())
        self.repositories[repo_type, repo_id] = repo
        if files:
            self.commit(repo_id, files, repo_type=repo_type)
        return repo

    def repository(self, repo_id: str, repo_type: RepoType = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str | Path],
        *,
        repo_type: RepoType = "model",
        branch: str = "main",
        **more: Any,
    ) -> Commit:
        """A commit made on the server's side; a Path is read, a str encoded."""
        blobs = {}
        for path, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            blobs[path] = make_blob(path, data.encode() if isinstance(data, str) else data)
            if blobs[path].large:
                self.storage[blobs[path].sha256] = blobs[path].data
        return self.repository(repo_id, repo_type).commit(blobs, branch=branch, **more)

    def inject(self, kind: FaultKind, pattern: str = "", **more: Any) -> Fault:
        """Put a fault in force (fields of `Fault`); `faults.clear()` takes all away."""
        return self.faults.add(Fault(kind, pattern, **more))

    def calls(self, pattern: str = "") -> list[Call]:
        """The requests so far whose "METHOD /path?query" the regular expression finds."""
        return [c for c in [*self.requests] if re.search(pattern, f"{c.method} {c.target}")]


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, storage: bool) -> None:
        self.hub, self.is_storage = hub, storage
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        listener = cast(_Listener, self.server)
        hub, method = listener.hub, self.command
        fault = hub.faults.matching(method, self.path, listener.is_storage)
        kind = fault.kind if fault else None
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        token = credentials if scheme == "Bearer" else None

        def record(size: int, status: int | None) -> None:
            agent = self.headers.get("User-Agent", "")
            storage = listener.is_storage
            call = Call(method, self.path, storage, token, agent, size, status, kind)
            hub.requests.append(call)

        length = int(self.headers.get("Content-Length") or 0)
        if kind in ("reset", "cut") and method != "GET":
            record(len(self.rfile.read(length // 2)), None)
            return self._drop(reset=kind == "reset")
        body = self._read_chunked() if self._is_chunked() else self.rfile.read(length)
        if fault and kind in ("hangup", "timeout"):
            record(len(body), None)
            if kind == "timeout":
                hub.closing.wait(fault.seconds)
            return self._drop()
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        user = hub.users.get(token or "")
        if fault and kind == "status":
            message = f"injected fault: {fault.status}"
            response = as_json({"error": message}, fault.status, **{"X-Error-Message": message})
            if fault.retry_after is not None:
                response.headers["Retry-After"] = str(fault.retry_after)
        else:
            accept = self.headers.get("Accept", "")
            request = Request(method, url.path, query, body, token, user, accept)
            try:
                response = self._store(request) if listener.is_storage else answer(hub, request)
            except HubError as error:
                response = _refusal(error)
        if kind == "lost":
            record(len(body), None)
            return self._drop()
        record(len(body), response.status)
        self._send(response, kind)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _store(self, request: Request) -> Response:
        """The host of the large files."""
        hub = cast(_Listener, self.server).hub
        oid = request.path.rsplit("/", 1)[-1]
        signature = parse_qs(urlsplit(hub.storage_url(oid, "")).query)["signature"]
        if request.query.get("signature") != signature:
            raise HubError(403, "SignatureDoesNotMatch")
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != oid:
                raise HubError(400, "XAmzContentSHA256Mismatch")
            hub.storage[oid] = request.body
            return Response(200, b"", {"ETag": f'"{oid}"'})
        if oid not in hub.storage:
            raise HubError(404, "NoSuchKey")
        return Response(200, hub.storage[oid], {"ETag": f'"{oid}"'}, ranges=True)

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _read_chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, response: Response, fault: FaultKind | None) -> None:
        status, body, headers = response.status, response.body, response.headers
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if response.ranges:
            headers = headers | {"Accept-Ranges": "bytes"}
        if response.ranges and asked and self.command == "GET":
            total = len(body)
            first, last = asked.groups()
            start = int(first) if first else max(total - int(last or 0), 0)
            end = min(int(last), total - 1) if first and last else total - 1
            if start >= total:
                status, body = 416, b""
                headers = headers | {"Content-Range": f"bytes */{total}"}
            else:
                status, body = 206, body[start : end + 1]
                headers = headers | {"Content-Range": f"bytes {start}-{end}/{total}"}
        half = len(body) // 2
        if fault == "truncate":
            body = body[:half]
        elif fault == "flip" and body:
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("reset", "cut"):
            self.wfile.write(body[:half])
            return self._drop(reset=fault == "reset")
        self.wfile.write(body)

    def _drop(self, reset: bool = False) -> None:
        """End the connection at once, with a RST if `reset`, else a FIN."""
        self.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(self.connection.detach())  # past the buffers that keep the socket open


def _refusal(error: HubError) -> Response:
    """A HubError as the Hub says it: JSON, and its error headers."""
    more = dict(error.more)
    headers = more.pop("headers", {}) | {"X-Error-Message": error.message}
    if error.code:
        headers["X-Error-Code"] = error.code
    return as_json({"error": error.message} | more, error.status, **headers)


def as_text(content: Any) -> str:
    """JSON as the Hub's repositories hold it."""
    return json.dumps(content, indent=2) + "\n"
