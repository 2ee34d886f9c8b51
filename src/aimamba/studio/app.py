"""The page on the server: routes, limits, and how it begins and ends with the service."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

import gradio as gr
from fastapi import FastAPI, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from aimamba.serve.app import make_app
from aimamba.serve.service import Service
from aimamba.studio.door import PREFIX, Door
from aimamba.studio.page import make_page
from aimamba.studio.theme import THEME
from aimamba.studio.thumbnails import Thumbnails

_OWN = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_SMALL = 1 << 16  # bytes of a body without an image
_HEAD = '<link rel="icon" href="own/logo.svg"><link rel="stylesheet" href="own/studio.css">' + "".join(
    f'<script src="own/{name}.js"></script>' for name in ("studio", "history", "tools", "stage")
)


def make_studio(service: Service) -> tuple[FastAPI, Callable[[], None]]:
    """Return the app of ``aimamba.serve`` with the page, and what to call when the server is asked to stop."""
    calls = (f"{PREFIX}/gradio_api/{name}" for name in ("queue/join", "cancel", "reset", "component_server/"))
    bodies = dict.fromkeys(calls, _SMALL)
    bodies[f"{PREFIX}/gradio_api/queue/join"] = _SMALL + service.config.upload_bytes // 3 * 4  # a file in base64
    app = make_app(service, further_bodies=bodies, exact=f"{PREFIX}/")
    thumbnails = Thumbnails(service)
    _add_routes(app, service, thumbnails)
    _make_thumbnails(app, thumbnails)
    gr.mount_gradio_app(
        app, make_page(service), PREFIX, footer_links=[], run_history=False, show_error=True, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, theme=THEME, head=_HEAD,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )  # fmt: skip
    app.add_middleware(Door, config=service.config)
    gradio_app: Any = app.routes[-1].app  # type: ignore[attr-defined]

    def stop() -> None:
        service.drain()
        gradio_app.stop_event.set()  # ends the connections that only say that a page is still open

    return app, stop


def _add_routes(app: FastAPI, service: Service, thumbnails: Thumbnails) -> None:
    """Add what the page asks for beside Gradio's own routes."""
    instance = secrets.token_hex(8)
    own = files("aimamba.studio") / "files"

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse(f"{PREFIX}/", 307)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return await own_file("logo.svg")

    @app.get(f"{PREFIX}/status", include_in_schema=False)
    async def status() -> dict[str, Any]:
        ready = sorted(thumbnails.ready)
        return {"instance": instance, "ready": service.ready, "thumbnails": ready, "of": thumbnails.total}

    @app.get(f"{PREFIX}/thumbnails/{{label}}", include_in_schema=False)
    async def thumbnail(label: int) -> Response:
        if label not in thumbnails.ready:
            raise HTTPException(404, "this thumbnail is not ready")
        cached = {"Cache-Control": "private, max-age=3600"}
        return Response(thumbnails.ready[label], media_type="image/webp", headers=cached)

    @app.get(f"{PREFIX}/own/{{name}}", include_in_schema=False)
    async def own_file(name: str) -> Response:
        file, kind = own / name, name.rpartition(".")[2]
        if kind not in _OWN or not file.is_file():
            raise HTTPException(404, "there is no such file")
        return Response(file.read_bytes(), media_type=_OWN[kind], headers={"Cache-Control": "no-cache"})


def _make_thumbnails(app: FastAPI, thumbnails: Thumbnails) -> None:
    """Make thumbnails in the background while the app runs."""
    before = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[Any]:
        async with before(running) as state:
            task = asyncio.create_task(thumbnails.make())
            try:
                yield state
            finally:
                task.cancel()

    app.router.lifespan_context = lifespan
