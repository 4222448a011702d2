"""The rest of the Hub's API: repositories, names of commits, accounts, cards."""

from typing import TYPE_CHECKING, Any

from tests.hub.fake.cards import metadata_problems
from tests.hub.fake.repositories import HubError, Repository, RepoType
from tests.hub.fake.routes import (
    _API,
    TYPES,
    Request,
    Response,
    as_json,
    describe,
    may_write,
    reach,
    route,
)

if TYPE_CHECKING:
    from tests.hub.fake.server import HubServer


@route("GET", r"/api/whoami-v2")
def whoami(hub: "HubServer", request: Request) -> Response:
    user = request.user
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return as_json(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name.title(),
            "orgs": [{"type": "org", "name": name} for name in user.organizations],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "tests", "role": user.role},
            },
        }
    )


@route("POST", r"/api/validate-yaml")
def validate_yaml(hub: "HubServer", request: Request) -> Response:
    asked = request.json()
    repo_type = asked.get("repoType", "model")
    errors, warnings = metadata_problems(asked["content"], repo_type, hub.licences)
    if request.accept == "text/plain":
        return Response(400 if errors else 200, "\n".join(errors).encode())
    return as_json(
        {
            "errors": [{"message": message} for message in errors],
            "warnings": [{"message": message} for message in warnings],
        },
        status=400 if errors else 200,
    )


def _named(request: Request, asked: dict[str, Any]) -> tuple[RepoType, str]:
    """Type and id of the repository that a `repos/` request speaks of."""
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    owner = asked.get("organization") or request.user.name
    return TYPES[asked.get("type", "model") + "s"], f"{owner}/{asked['name']}"


@route("POST", r"/api/repos/create")
def create(hub: "HubServer", request: Request) -> Response:
    asked = request.json()
    repo_type, repo_id = _named(request, asked)
    may_write(request.user, repo_id.split("/")[0])
    if (repo_type, repo_id) in hub.repositories:
        url = hub.web_url(hub.repositories[repo_type, repo_id])
        raise HubError(409, f"You already created this {repo_type} repo: {repo_id}", url=url)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repo = hub.add_repository(repo_id, {}, repo_type=repo_type, private=private)
    return as_json({"url": hub.web_url(repo), "name": repo_id, "id": repo.at().oid[:24]})


@route("DELETE", r"/api/repos/delete")
def delete(hub: "HubServer", request: Request) -> Response:
    repo_type, repo_id = _named(request, request.json())
    reach(hub, request, repo_type, repo_id, write=True)
    del hub.repositories[repo_type, repo_id]
    return as_json({"success": True})


@route("PUT", _API + r"/settings")
def settings(hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str) -> Response:
    repo = reach(hub, request, repo_type, repo_id, write=True)
    asked = request.json()
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    if "private" in asked:
        repo.private = bool(asked["private"])
    if "gated" in asked:
        repo.gated = bool(asked["gated"])
    return as_json({"private": repo.private, "gated": repo.gated})


@route("GET", _API + r"/auth-check(?P<write>/write)?")
def auth_check(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, write: str | None
) -> Response:
    repo = reach(hub, request, repo_type, repo_id, write=write is not None)
    if repo.gated and (request.user is None or request.user.name not in repo.granted):
        raise HubError(403 if request.user else 401, "Access is restricted.", "GatedRepo")
    return as_json({})


@route("GET", _API + r"/refs")
def refs(hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str) -> Response:
    repo = reach(hub, request, repo_type, repo_id)

    def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in names.items()
        ]

    both = {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags")}
    return as_json(both | {"converts": []})


@route("GET", _API + r"/commits/(?P<revision>[^/]+)")
def commits(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, revision: str
) -> Response:
    repo = reach(hub, request, repo_type, repo_id)
    return as_json(
        [
            {
                "id": one.oid,
                "title": one.title,
                "message": one.message,
                "authors": [{"user": one.author}],
                "date": one.date,
            }
            for one in repo.history(revision)
        ]
    )


@route("POST DELETE", _API + r"/branch/(?P<name>[^/]+)")
def branch(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, name: str
) -> Response:
    repo = reach(hub, request, repo_type, repo_id, write=True)
    if request.method == "DELETE":
        return _forget(repo.branches, name)
    start = request.json().get("startingPoint") or "main"
    return _point(repo, repo.branches, name, start)


@route("POST DELETE", _API + r"/tag/(?P<name>[^/]+)")
def tag(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, name: str
) -> Response:
    repo = reach(hub, request, repo_type, repo_id, write=True)
    if request.method == "DELETE":
        return _forget(repo.tags, name)
    return _point(repo, repo.tags, request.json()["tag"], name)  # the path names the revision


def _point(repo: Repository, names: dict[str, str], name: str, revision: str) -> Response:
    if name in names:
        raise HubError(409, f"Reference already exists: {name}")
    names[name] = repo.at(revision).oid
    return as_json({"success": True})


def _forget(names: dict[str, str], name: str) -> Response:
    if name not in names:
        raise HubError(404, f"Reference not found: {name}", "RevisionNotFound")
    del names[name]
    return as_json({"success": True})


# Last: its path is a prefix of the others'.
@route("GET", _API + r"(?:/revision/(?P<revision>[^/]+))?")
def info(
    hub: "HubServer", request: Request, repo_type: RepoType, repo_id: str, revision: str | None
) -> Response:
    repo = reach(hub, request, repo_type, repo_id)
    return as_json(describe(repo, repo.at(revision or "main"), request.flag("blobs")))
