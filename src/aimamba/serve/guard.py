"""What is checked before a request reaches its route: key, kind and length of its body, and its pace."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aimamba.serve.config import ServeConfig
from aimamba.serve.errors import ApiError, body

_OPEN = ("/healthz", "/readyz")  # for what watches the server, which has no key
_MULTIPART = "multipart/form-data"
_JSON_BYTES = 1 << 16
_PORT = re.compile(r":\d*$")
_CLOSE = {"Connection": "close"}  # what is left of the body is not read, so the connection cannot be used again


class Lenient:
    """ASGI middleware. Takes HEAD for GET without the body, and a path for the one without a slash at its end."""

    def __init__(self, app: ASGIApp, *, exact: str = "") -> None:
        """Wrap an app.

        Args:
            app: What requests are handed to.
            exact: What paths begin with in which a slash at the end counts; empty for none.
        """
        self._app, self._exact = app, exact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_head, path = scope["method"] == "HEAD", scope["path"]
        if not (self._exact and path.startswith(self._exact)):
            path = path.rstrip("/") or "/"
        scope = {**scope, "method": "GET" if is_head else scope["method"], "path": path}

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app(scope, receive, without_body if is_head else send)


class Guard:
    """ASGI middleware. Answers 400, 401, 408, 413 or 415, or hands the request on."""

    def __init__(
        self, app: ASGIApp, *, config: ServeConfig, bodies: Mapping[str, str], lengths: Mapping[str, int]
    ) -> None:
        """Wrap an app.

        Args:
            app: What requests are handed to.
            config: Limits and keys.
            bodies: The media type of the body that a path takes.
            lengths: The bytes that a body may have, where that is not what the config says.
        """
        self._app, self._config, self._bodies, self._lengths = app, config, bodies, lengths
        self._keys = [hashlib.sha256(key.encode()).digest() for key in config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            if b"host" in headers or scope.get("http_version") != "1.0":  # a browser always sends it
                self._check_host(headers.get(b"host", b""))
            self._check_key(scope["path"], scope["method"], headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                limit = self._check_body(scope["path"], headers)
                receive = _Body(receive, limit, self._config.idle_seconds).receive
        except ApiError as error:
            content = body(error.status, str(error), error.field)
            await JSONResponse(content, error.status, {**error.headers, **_CLOSE})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check_host(self, given: bytes) -> None:
        host = _PORT.sub("", given.decode("latin-1")).strip("[]").lower()
        if self._config.hosts and host not in self._config.hosts:
            raise ApiError(400, f"the server is not called {host[:100]!r}; --allowed-hosts names more")

    def _check_key(self, path: str, method: str, headers: Mapping[bytes, bytes]) -> None:
        if not self._keys or path in _OPEN or method == "OPTIONS":
            return
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        digest = hashlib.sha256(given).digest()  # of equal length, so that the comparison tells nothing about it
        if not max(hmac.compare_digest(digest, key) for key in self._keys):  # all of them, whichever it is
            raise ApiError(401, "give a valid API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")

    def _check_body(self, path: str, headers: Mapping[bytes, bytes]) -> int:
        """Check what the headers say of a body, and return how many bytes it may have."""
        expected = self._bodies.get(path)
        limit = self._lengths.get(path, self._config.upload_bytes if expected == _MULTIPART else _JSON_BYTES)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if expected is not None and kind != expected:
            raise ApiError(415, f"expected a body of type {expected}, got {kind or 'none'}")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > limit:
            raise ApiError(413, _too_large(limit))
        return limit


class _Body:
    """The body of a request, which has to come in time and may not be too long."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._limit, self._bytes = receive, limit, 0
        self._deadline: float | None = asyncio.get_running_loop().time() + seconds

    async def receive(self) -> Message:
        """Return the next message."""
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body of the request did not come in time", _CLOSE) from None
        self._bytes += len(message.get("body", b""))
        if self._deadline is not None and self._bytes > self._limit:
            raise HTTPException(413, _too_large(self._limit), _CLOSE)
        if not message.get("more_body", False):
            self._deadline = None  # from now on the client may only leave
        return message


def _too_large(limit: int) -> str:
    return f"the body of the request has more than {limit:,} bytes"
