"""The Hub's HTTP API, path by path: what is read, written and refused, without the transport."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote

from tests.hub.fake.cards import front_matter, metadata_problems
from tests.hub.fake.repositories import Blob, Commit, HubError, Repository, RepoType, make_blob

if TYPE_CHECKING:
    from tests.hub.fake.server import HubServer

TYPES: dict[str, RepoType] = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True)
class User:
    """Who a token belongs to."""

    name: str
    role: str = "write"  # or "read"
    organizations: tuple[str, ...] = ()


@dataclass
class Request:
    """One request, read to its end."""

    method: str
    path: str  # still percent-encoded
    query: dict[str, list[str]]
    body: bytes
    token: str | None
    user: User | None
    accept: str = ""

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("true", "1")


@dataclass
class Response:
    """One answer; a `body` with `ranges` may be asked for in part."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False


def as_json(content: Any, status: int = 200, **headers: str) -> Response:
    head = {"Content-Type": "application/json; charset=utf-8"} | headers
    return Response(status, json.dumps(content).encode(), head)


Route = Callable[..., Response]
_ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
_REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
_API = r"/api/(?P<kind>models|datasets|spaces)/" + _REPO
_WEB = r"/(?:(?P<kind>datasets|spaces)/)?" + _REPO


def route(methods: str, pattern: str) -> Callable[[Route], Route]:
    """Register a handler; its named groups arrive unquoted as keyword arguments."""

    def register(function: Route) -> Route:
        for method in methods.split():
            _ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def answer(hub: "HubServer", request: Request) -> Response:
    """The Hub's answer to a request; raises HubError for any but success."""
    for method, pattern, function in _ROUTES:
        found = pattern.fullmatch(request.path)
        if found is None or method != ("GET" if request.method == "HEAD" else request.method):
            continue
        groups = {k: unquote(v) if v else v for k, v in found.groupdict().items()}
        if "repo_id" in groups:
            repo_type = TYPES[groups.pop("kind") or "models"]
            moved = hub.moved.get((repo_type, groups["repo_id"] or ""))
            if moved:
                where = request.path.replace(groups["repo_id"] or "", moved, 1)
                query = "&".join(f"{k}={quote(v)}" for k, vs in request.query.items() for v in vs)
                return Response(307, b"", {"Location": where + (f"?{query}" if query else "")})
            groups["repo_type"] = repo_type
        if request.token and request.user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return function(hub, request, **groups)
    raise HubError(404, "Sorry, we can't find the page you are looking for.")


def reach(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, write: bool = False
) -> Repository:
    """The repository, if this user may see it (and write to it); else 401, 403 or 404."""
    repo = hub.repositories.get((repo_type, repo_id))
    user = request.user
    theirs = (user.name, *user.organizations) if user else ()
    if repo is None or (repo.private and repo.owner not in theirs):
        raise HubError(404 if user else 401, "Repository Not Found", "RepoNotFound")
    if write:
        may_write(user, repo.owner)
    return repo


def may_write(user: User | None, owner: str) -> None:
    """Raise 401 without a user, 403 for a read token or another's name space."""
    if user is None:
        raise HubError(401, "Invalid username or password.")
    if user.role != "write" or owner not in (user.name, *user.organizations):
        raise HubError(403, f'You don\'t have the rights to write under the namespace "{owner}"')


@route("GET", _WEB + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(
    hub: "HubServer",
    request: Request,
    repo_type: RepoType,
    repo_id: str,
    revision: str,
    path: str,
) -> Response:
    repo = reach(hub, request, repo_type, repo_id)
    if repo.gated and (request.user is None or request.user.name not in repo.granted):
        raise HubError(
            403 if request.user else 401,
            f"Access to {repo_type} {repo_id} is restricted.",
            "GatedRepo",
        )
    commit = repo.at(revision)
    headers = {"X-Repo-Commit": commit.oid}
    blob = commit.files.get(path)
    if blob is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers=headers)
    if blob.large:
        location = hub.storage_url(blob.sha256, path.rsplit("/", 1)[-1])
        size = str(len(blob.data))
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": size, "Location": location}
        return Response(302, b"Found. Redirecting", headers | linked)
    return Response(200, blob.data, headers | {"ETag": f'"{blob.etag}"'}, ranges=True)


@route("GET", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(
    hub: "HubServer",
    request: Request,
    repo_type: RepoType,
    repo_id: str,
    revision: str,
    folder: str | None,
) -> Response:
    repo = reach(hub, request, repo_type, repo_id)
    entries = repo.tree(revision, folder or "", request.flag("recursive"))
    start = int(request.query.get("cursor", ["0"])[-1])
    size = int(request.query.get("limit", [str(hub.page_size)])[-1])
    headers = {"X-Repo-Commit": repo.at(revision).oid}
    if start + size < len(entries):
        others = {k: v[-1] for k, v in request.query.items() if k != "cursor"}
        query = "&".join(f"{k}={v}" for k, v in (others | {"cursor": start + size}).items())
        headers["Link"] = f'<{hub.endpoint}{request.path}?{query}>; rel="next"'
    return as_json(entries[start : start + size], 200, **headers)


@route("POST", _API + r"/paths-info/(?P<revision>[^/]+)")
def paths_info(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, revision: str
) -> Response:
    repo = reach(hub, request, repo_type, repo_id)
    if request.body[:1] == b"{":
        paths = request.json()["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    everything = {entry["path"]: entry for entry in repo.tree(revision, "", recursive=True)}
    return as_json([everything[path] for path in paths if path in everything])


@route("POST", _API + r"/preupload/(?P<revision>[^/]+)")
def preupload(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, revision: str
) -> Response:
    repo = reach(hub, request, repo_type, repo_id, write=True)
    files = repo.at(revision).files
    found = []
    for file in request.json()["files"]:
        sample = base64.b64decode(file["sample"])
        padded = sample + b" " * (file["size"] - len(sample))
        blob = make_blob(file["path"], padded, _attributes(files))
        entry = {"path": file["path"], "shouldIgnore": False}
        entry["uploadMode"] = "lfs" if blob.large else "regular"
        if file["path"] in files:
            entry["oid"] = files[file["path"]].etag
        found.append(entry)
    return as_json({"files": found})


def _attributes(files: Any) -> bytes:
    return files[".gitattributes"].data if ".gitattributes" in files else b""


@route("POST", _WEB + r"\.git/info/lfs/objects/batch")
def lfs_batch(hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str) -> Response:
    reach(hub, request, repo_type, repo_id, write=True)
    objects = []
    for wanted in request.json()["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if wanted["oid"] not in hub.storage:  # else no action: it is there already
            verify = f"{hub.endpoint}{request.path.removesuffix('batch')}verify"
            upload = hub.storage_url(wanted["oid"], "upload")
            entry["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(entry)
    return as_json({"transfer": "basic", "objects": objects})


@route("POST", _WEB + r"\.git/info/lfs/objects/verify")
def lfs_verify(hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str) -> Response:
    reach(hub, request, repo_type, repo_id, write=True)
    wanted = request.json()
    if len(hub.storage.get(wanted["oid"], b"")) != wanted["size"]:
        raise HubError(404, "Object not found or of another size")
    return as_json({"success": True})


@route("POST", _API + r"/commit/(?P<revision>[^/]+)")
def commit(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, revision: str
) -> Response:
    repo = reach(hub, request, repo_type, repo_id, write=True)
    if request.flag("create_pr"):
        raise HubError(400, "This Hub keeps no pull requests")
    header: dict[str, Any] = {}
    add: dict[str, Blob] = {}
    delete: list[str] = []
    attributes = _attributes(repo.at(revision).files)
    for line in request.body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            header = value
        elif key == "file":
            blob = make_blob(value["path"], base64.b64decode(value["content"]), attributes)
            add[value["path"]] = blob
            if blob.large:
                hub.storage[blob.sha256] = blob.data
        elif key == "lfsFile":
            if value["oid"] not in hub.storage:
                raise HubError(400, f"LFS pointer to a file that does not exist: {value['path']}")
            add[value["path"]] = Blob(hub.storage[value["oid"]], large=True)
        elif key == "deletedFile":
            delete.append(value["path"])
        elif key == "deletedFolder":
            delete.append(value["path"].rstrip("/") + "/")
        else:
            raise HubError(400, f"Unknown operation: {key}")
    if "README.md" in add:
        errors, _ = metadata_problems(add["README.md"].data.decode(), repo_type, hub.licences)
        if errors:
            raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
    made = repo.commit(
        add,
        delete=delete,
        title=header.get("summary", ""),
        message=header.get("description", ""),
        branch=revision,
        parent=header.get("parentCommit"),
        author=request.user.name if request.user else "",
    )
    url = f"{hub.web_url(repo)}/commit/{made.oid}"
    return as_json({"success": True, "commitUrl": url, "commitOid": made.oid, "hookOutput": ""})


def describe(repo: Repository, state: Commit, blobs: bool) -> dict[str, Any]:
    """What `model_info` and `dataset_info` get to see."""
    siblings = []
    for path, blob in sorted(state.files.items()):
        entry: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry |= {"size": len(blob.data), "blobId": blob.oid}
            if blob.large:
                lfs = {"sha256": blob.sha256, "size": len(blob.data)}
                entry["lfs"] = lfs | {"pointerSize": len(blob.pointer)}
        siblings.append(entry)
    readme = state.files["README.md"].data.decode() if "README.md" in state.files else ""
    card = front_matter(readme) or {}
    first = min(repo.commits.values(), key=lambda c: c.date)
    tags = [*card.get("tags", [])]
    if "license" in card:
        tags.append(f"license:{card['license']}")
    return {
        "_id": state.oid[:24],
        "id": repo.repo_id,
        "author": repo.owner,
        "sha": state.oid,
        "createdAt": first.date,
        "lastModified": state.date,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card,
        "siblings": siblings,
    }
