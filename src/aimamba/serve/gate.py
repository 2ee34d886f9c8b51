"""What stands in Ray's proxy, in front of the replicas. Ray imports it by name, and it needs no torch.

Replicas name themselves in their answers. What else comes is of Ray: there is no replica, or it was lost while it
answered. Then a client is told to ask again.
"""

import json
import os

import uvicorn.protocols.http.auto
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aimamba.serve.protocol import make_protocol

REPLICA = b"x-replica"
"""Header of an answer: the replica that gave it."""

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_IDLE = "AIMAMBA_SERVE_IDLE_SECONDS"
_RAYS_OWN = "/-/"  # paths of Ray: /-/healthz, /-/routes
_RETRY_AFTER = 2  # seconds
_LOST = "the replica that had this request was lost, or none is ready; ask again"
_ERROR = json.dumps({"error": {"message": _LOST, "type": "server_error", "param": None, "code": 503}}).encode()
_EVENT = b"event: error\ndata: " + _ERROR + b"\n\n"


def environment(idle_seconds: float) -> dict[str, str]:
    """Return what Ray's proxy needs in its environment.

    Args:
        idle_seconds: As in ``ServeConfig``.
    """
    return {_CALLBACK: f"{__name__}.make_gate", _IDLE: str(idle_seconds)}


def make_gate() -> list[Middleware]:
    """Return the middleware for Ray's proxy, and limit the time of clients that hang in it."""
    protocol = make_protocol(float(os.environ.get(_IDLE, "30")))
    uvicorn.protocols.http.auto.AutoHTTPProtocol = protocol  # Ray takes it, and has no setting for it
    return [Middleware(Gate)]


class Gate:
    """ASGI middleware. Answers 503 with ``Retry-After`` in place of a replica that was lost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"].startswith(_RAYS_OWN):
            return await self._app(scope, receive, send)
        begin: Message | None = None  # held back until there is something of the body
        is_begun = is_whole = is_stream = False

        async def checked(message: Message) -> None:
            nonlocal begin, is_begun, is_whole, is_stream
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                begin = message if REPLICA in headers else None
                is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            elif begin is not None:
                if not is_begun:
                    is_begun = True
                    await send(begin)
                is_whole = not message.get("more_body", False)
                await send(message)

        await self._app(scope, receive, checked)
        if not is_begun:
            headers = [(b"content-type", b"application/json"), (b"retry-after", str(_RETRY_AFTER).encode())]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": _ERROR})
        elif not is_whole and is_stream:
            await send({"type": "http.response.body", "body": _EVENT})


class Named:
    """ASGI middleware of a replica: puts its name into every answer."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app, self._header = app, (REPLICA, name.encode("ascii"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], self._header]}
            await send(message)

        await self._app(scope, receive, named)
