"""`explore --serve`: the static folder on 127.0.0.1, with live panels.

A page of another site may send requests here too. So only requests to this host by name are
answered, and those that ask something of the model must be JSON, which a browser does not send
across sites without asking first; nothing answers that question.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import BipolarError, ConfigError
from sae_lens_bipolar.explorer.live import Live, Stop, Stopped

HOST = "127.0.0.1"
_HOSTS = [HOST, "localhost"]
_POLL_SECONDS = 0.05
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def require_server() -> None:
    """Raise ConfigError, saying how to install it, if there is no server to serve with."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            "--serve needs starlette and uvicorn: pip install 'sae-lens-bipolar[explore]'"
        ) from error
    del starlette, uvicorn


def application(live: Live) -> Any:
    """The ASGI application: the page, its data, and `api/read` and `api/steer`."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    async def page(_: Request) -> Response:
        return FileResponse(live.folder / "index.html", headers=_HEADERS)

    async def offered(_: Request) -> Response:
        limits = live.limits
        told = {"max_tokens": limits.max_tokens, "max_new_tokens": limits.max_new_tokens}
        script = f'explorer.put("live",{json.dumps(told)});\n'
        return Response(script, media_type="text/javascript", headers=_HEADERS)

    def answering(work: Callable[[dict[str, Any], Stop], dict[str, Any]]) -> Any:
        async def answer(request: Request) -> Response:
            try:
                asked = await _asked(request, live.limits.max_bytes)
                value = await _worked(request, work, asked, live.limits.max_seconds)
            except Stopped as error:
                return JSONResponse({"error": str(error)}, 503, _HEADERS)
            except BipolarError as error:
                return JSONResponse({"error": str(error)}, 400, _HEADERS)
            return JSONResponse(value, headers=_HEADERS)

        return answer

    return Starlette(
        routes=[
            Route("/", page),
            Route("/index.html", page),
            Route("/data/live.js", offered),
            Route("/api/read", answering(live.read), methods=["POST"]),
            Route("/api/steer", answering(live.steer), methods=["POST"]),
            Mount("/data", StaticFiles(directory=live.folder / "data")),
            Mount("/static", StaticFiles(directory=live.folder / "static")),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
    )


def serve(live: Live, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    import uvicorn

    print(f"serving http://{HOST}:{port}/ until Ctrl-C", flush=True)
    uvicorn.run(
        application(live), host=HOST, port=port, log_level="warning", timeout_graceful_shutdown=5
    )


async def _asked(request: Any, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        ConfigError: if it is anything else, or too large.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise ConfigError("Content-Type must be application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise ConfigError(f"the request is larger than {max_bytes} bytes")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("the request must be a JSON object")
    return value


async def _worked(
    request: Any, work: Callable[..., dict[str, Any]], asked: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Do the work in a thread; a client that goes away cancels it."""
    stop = Stop(seconds)
    task = asyncio.create_task(asyncio.to_thread(work, asked, stop))
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_POLL_SECONDS)
            if await request.is_disconnected():
                stop.set()
        return task.result()
    finally:
        stop.set()


def live_of(folder: Path, model: Any, sources: Any) -> Live:
    """The live panels of a finished explorer."""
    saes = {source.name: source.load().to(model.cfg.device) for source in sources}
    return Live(folder, model, saes)
