"""What stands before the page: its paths, its key, its limits."""

import asyncio
import re

import pytest

pytest.importorskip("gradio", reason="needs the extra 'studio'")

from fastapi.testclient import TestClient

from aimamba.studio.app import make_studio
from aimamba.studio.door import Door

KEY = "a-key-of-sixteen-letters"
JOIN = "/studio/gradio_api/queue/join"


async def within_a_loop(service):
    """Make the app where Gradio finds a loop: otherwise it makes one and never closes it."""
    return make_studio(service)


@pytest.fixture
def visit(make_service, tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path))
    opened = []

    def make(**settings):
        app, stop = asyncio.run(within_a_loop(make_service(**settings)))
        client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
        client.stop = stop
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.stop()
        client.__exit__(None, None, None)


def test_the_page_is_there_and_leads_nowhere_else(visit):
    client = visit()
    assert client.get("/").headers["location"] == client.get("/studio").headers["location"] == "/studio/"
    page = client.get("/studio/")
    assert page.status_code == 200
    assert "Loading the studio" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', page.text) == []
    assert "og:image" not in page.text
    for name in ("studio.css", "studio.js", "history.js", "tools.js", "stage.js", "logo.svg"):
        assert client.get(f"/studio/own/{name}").status_code == 200
        assert f"own/{name}" in page.text or name == "logo.svg"
    assert client.get("/studio/own/none.js").status_code == 404
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    for path in (
        "file=/etc/hosts",
        "proxy=http://127.0.0.1/",
        "upload",
        "info",
        "call/draw",
        "run/predict",
        "vibe-edit/",
    ):
        assert client.get(f"/studio/gradio_api/{path}").status_code == 404
        assert client.post(f"/studio/gradio_api/{path}", json={}).status_code == 404
    assert client.get("/studio/own/../app.py").status_code == 404
    assert client.get("/studio/monitoring").status_code == 404


def test_the_api_and_its_document_stay_as_they_are(visit):
    client = visit()
    assert client.get("/healthz").text == "ok\n"
    assert client.post("/v1/images", json={"classes": ["plain"]}).status_code == 200
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "studio" in path]
    status = client.get("/studio/status").json()
    assert (status["ready"], status["of"]) == (True, 5)
    for label in client.get("/studio/status").json()["thumbnails"]:
        assert client.get(f"/studio/thumbnails/{label}").headers["content-type"] == "image/webp"
    assert client.get("/studio/thumbnails/99").status_code == 404


def test_bodies_are_limited_as_everywhere(visit):
    client = visit(upload_bytes=1000)
    join = {"data": [], "fn_index": 0, "session_hash": "a"}
    assert client.post(JOIN, json=join | {"event_data": "x" * 80_000}).status_code == 413
    assert client.post(JOIN, content="{}", headers={"Content-Type": "text/plain"}).status_code == 415  # another site's
    assert client.post("/studio/gradio_api/cancel", json={"event_id": "x" * 70_000}).status_code == 413


def test_no_door_around_the_key(visit):
    client = visit(api_keys=("another-key-of-letters", KEY))
    page = client.get("/studio/")
    assert page.status_code == 401
    assert 'type="password"' in page.text
    paths = ("config", "status", "thumbnails/0", "theme.css", "own/studio.js", "gradio_api/heartbeat/a")
    for path in paths:
        assert client.get(f"/studio/{path}").status_code == 401
    for path in ("queue/join", "component_server/", "cancel", "reset"):
        assert client.post(f"/studio/gradio_api/{path}", json={}).status_code == 401
    for cookie in ("", "9999999999.abc", "x.y", "9" * 5000, f"9999999999.{KEY}"):
        assert client.get("/studio/status", headers={"Cookie": f"aimamba-studio={cookie}"}).status_code == 401
    refused = client.post("/studio/login", data={"key": KEY + "x"})
    assert (refused.status_code, "not valid" in refused.text) == (401, True)
    assert client.post("/studio/login", data={"key": "x" * 5000}).status_code == 413

    entered = client.post("/studio/login", data={"key": f" {KEY} "})
    assert (entered.status_code, entered.headers["location"]) == (303, "/studio/")
    assert KEY not in entered.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/studio"} <= set(entered.headers["set-cookie"].split("; "))
    assert client.get("/studio/").status_code == 200
    assert client.get("/studio/status").status_code == 200
    assert client.get("/v1/models").status_code == 401  # the cookie is for the page alone
    assert client.get("/studio/status", headers={"X-API-Key": "wrong"}).status_code == 401
    old = client.cookies["aimamba-studio"].split(".")[1]
    client.cookies.clear()
    assert client.get("/studio/status", headers={"Cookie": f"aimamba-studio=1.{old}"}).status_code == 401  # expired


def test_a_cookie_outlives_the_server_and_not_its_key(make_service):
    from aimamba.studio.door import _sign

    async def nothing(scope, receive, send):
        """Answer nothing."""

    def key_of(keys, value):
        door = Door(nothing, config=make_service(api_keys=keys).config)
        return door._key_of_cookie({"headers": [(b"cookie", f"aimamba-studio={value}".encode())]})

    value = f"9999999999.{_sign(KEY, '9999999999')}"
    assert key_of((KEY,), value) == KEY
    assert key_of(("another-key-of-letters",), value) is None
