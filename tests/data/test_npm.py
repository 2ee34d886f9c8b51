"""Packages of npm: from a registry on this machine."""

import base64
import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from aimamba.data.npm import DEFAULT_REGISTRY, Package, find_packages, read_members, registry
from aimamba.errors import DataError
from emoji_packages import tar
from refusals import one_line_error

CONTENT = tar({"a.json": b"{}", "deep/b.txt": b"b", "../../escaped.txt": b"c"})
PACKAGE = Package(
    name="@scope/thing",
    version="1.0.0",
    size=len(CONTENT),
    sha512=base64.b64encode(hashlib.sha512(CONTENT).digest()).decode(),
    licence="MIT",
)


@contextmanager
def serving(content, status=200):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/mirror/", asked
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("AIMAMBA_DATA", "npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)


def test_downloaded_once_from_the_registry_that_npm_is_set_to(tmp_path, monkeypatch, capsys):
    with serving(CONTENT) as (address, asked):
        monkeypatch.setenv("npm_config_registry", address)
        (path,) = find_packages([PACKAGE], "things", progress=True)
        assert find_packages([PACKAGE], "things") == [path]
    assert path == tmp_path / "cache" / "things" / "scope-thing-1.0.0.tgz"
    assert asked == ["/mirror/@scope/thing/-/thing-1.0.0.tgz"]
    assert "downloading @scope/thing 1.0.0" in capsys.readouterr().err
    assert list(path.parent.iterdir()) == [path]


def test_found_under_both_names(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_DATA", str(tmp_path))
    (tmp_path / "things").mkdir()
    path = tmp_path / "things" / "thing-1.0.0.tgz"
    path.write_bytes(CONTENT)
    assert find_packages([PACKAGE], "things") == [path]


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [(CONTENT[:-1], 200, "sent another file"), (CONTENT + b"x", 200, "another file"), (b"", 404, "Not Found")],
)
def test_another_file_is_refused(tmp_path, monkeypatch, content, status, reason):
    with serving(content, status) as (address, _), one_line_error(DataError, reason) as caught:
        monkeypatch.setenv("npm_config_registry", address)
        find_packages([PACKAGE], "things")
    assert f"@scope/thing@1.0.0 ({DEFAULT_REGISTRY}/@scope/thing/-/thing-1.0.0.tgz)" in str(caught.value)
    assert str(tmp_path / "cache" / "things") in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.tgz"))


def test_the_registry(tmp_path, monkeypatch):
    assert registry() == DEFAULT_REGISTRY
    (tmp_path / ".npmrc").write_text("//x/:_authToken=secret\n@scope:registry=http://no\nregistry=http://mirror/npm/\n")
    assert registry() == "http://mirror/npm"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "file:///etc")
    with one_line_error(DataError, "which is no web address"):
        find_packages([PACKAGE], "things")


def test_members_are_read_where_they_are(tmp_path):
    path = tmp_path / "p.tgz"
    path.write_bytes(CONTENT)
    assert list(read_members(path, ["a.json"])) == [("a.json", b"{}")]
    assert [name for name, _ in read_members(path, suffix=".txt")] == ["deep/b.txt", "../../escaped.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.tgz"]
    path.write_bytes(CONTENT[:60])
    with one_line_error(DataError, "cannot be read"):
        list(read_members(path))
