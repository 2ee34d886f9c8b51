"""What stands before the page: which paths there are, who may enter, and what a browser may load.

Gradio's app has many routes, for files, proxies and an API of its own; only those that the page needs are reachable.
Where the server asks for a key, a visitor gives it once and gets a cookie; this is turned back into the key's header
here, so that the guard of ``aimamba.serve`` decides about the page as about every other request.
"""

import hashlib
import hmac
import re
import time
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aimamba.serve.config import ServeConfig

PREFIX = "/studio"

_LOGIN = f"{PREFIX}/login"
_COOKIE = "aimamba-studio"
_DAYS = 30
_LONGEST_FORM = 4096  # bytes
_PATHS = re.compile(
    r"/(|status|thumbnails/\d{1,7}|own/[a-z]+\.(css|js|svg)|config|theme\.css|assets/[\w.@-]+|static/[\w./@-]+"
    r"|gradio_api/(queue/(join|data)|cancel|reset|heartbeat/\w+|component_server/|startup-events|app_id))"
)
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
_FOREIGN = re.compile(rb'<meta\s+(property="og:|name="twitter:)[^>]*>\s*|<link rel="manifest"[^>]*>\s*')
_BOOT = b"<gradio-app"


class Door:
    """ASGI middleware around the whole app; what does not begin with ``PREFIX`` passes untouched."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig) -> None:
        """Wrap an app.

        Args:
            app: What requests are handed to.
            config: The keys.
        """
        self._app, self._keys = app, config.api_keys
        own = files("aimamba.studio") / "files"
        self._login = (own / "login.html").read_text(encoding="utf-8")
        self._boot = (own / "boot.html").read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == PREFIX or path.startswith(f"{PREFIX}/")):
            return await self._app(scope, receive, send)
        answer: Response | None = None
        if path == PREFIX:
            answer = RedirectResponse(_relative(scope, f"{PREFIX}/"), 307)
        elif path == _LOGIN:
            answer = await self._enter(scope, receive)
        elif not _PATHS.fullmatch(path[len(PREFIX) :]):
            answer = PlainTextResponse("there is no such page\n", 404)
        elif self._keys and not _names_a_key(scope):
            key = self._key_of_cookie(scope)
            if key is not None:
                scope = {**scope, "headers": [*scope["headers"], (b"x-api-key", key.encode())]}
            elif path == f"{PREFIX}/":
                answer = self._form(401)
        if answer is not None:
            return await answer(scope, receive, send)
        await self._app(scope, receive, _Careful(send, path == f"{PREFIX}/", self._boot).send)

    async def _enter(self, scope: Scope, receive: Receive) -> Response:
        """Return a cookie for a key."""
        if scope["method"] != "POST":
            return RedirectResponse(_relative(scope, f"{PREFIX}/"), 303)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > _LONGEST_FORM or message["type"] == "http.disconnect":
                return self._form(413)
            if not message.get("more_body", False):
                break
        given = parse_qs(body.decode("utf-8", errors="replace")).get("key", [""])[0].strip()
        digest = hashlib.sha256(given.encode()).digest()
        matching = [key for key in self._keys if hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())]
        if not matching:
            return self._form(401, "This key is not valid.")
        answer = RedirectResponse(_relative(scope, f"{PREFIX}/"), 303)
        until = str(int(time.time()) + _DAYS * 86400)
        answer.set_cookie(
            _COOKIE, f"{until}.{_sign(matching[0], until)}", max_age=_DAYS * 86400, path=PREFIX, httponly=True,
            samesite="strict", secure=scope.get("scheme") == "https",
        )  # fmt: skip
        return answer

    def _key_of_cookie(self, scope: Scope) -> str | None:
        """Return the key that a visitor gave earlier, if it is still valid."""
        raw = b"; ".join(value for name, value in scope["headers"] if name.lower() == b"cookie")
        try:
            cookie = SimpleCookie(raw.decode("latin-1")).get(_COOKIE)
        except CookieError:
            return None
        until, _, signature = ("" if cookie is None else cookie.value).partition(".")
        if not (until.isascii() and until.isdigit() and len(until) <= 12 and int(until) > time.time()):
            return None
        for key in self._keys:
            if hmac.compare_digest(signature.encode(), _sign(key, until).encode()):
                return key
        return None

    def _form(self, status: int, message: str = "") -> Response:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
        return HTMLResponse(self._login.replace("<!--message-->", message), status, headers)


class _Careful:
    """Adds headers to answers of the page, and takes out of the page itself what would lead elsewhere."""

    def __init__(self, send: Send, is_page: bool, boot: bytes) -> None:
        self._send, self._is_page, self._boot = send, is_page, boot
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            extra = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"same-origin")]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
            if self._is_page:
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body", False):
                return
            page = _FOREIGN.sub(b"", self._body).replace(_BOOT, self._boot + _BOOT, 1)
            headers = [pair for pair in self._start["headers"] if pair[0].lower() != b"content-length"]
            length = (b"content-length", str(len(page)).encode())
            await self._send({**self._start, "headers": [*headers, length]})
            message = {"type": "http.response.body", "body": page, "more_body": False}
        await self._send(message)


def _names_a_key(scope: Scope) -> bool:
    return any(name.lower() in (b"authorization", b"x-api-key") for name, _ in scope["headers"])


def _relative(scope: Scope, path: str) -> str:
    return str(scope.get("root_path", "")) + path


def _sign(key: str, until: str) -> str:
    return hmac.new(key.encode(), f"{_COOKIE} {until}".encode(), hashlib.sha256).hexdigest()
