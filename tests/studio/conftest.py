"""A studio of a tiny model: its handlers without a browser, and a server for a headless Chromium."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NAMES = ("plain", "spotted, small", "striped", "round", "odd")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_STARTED = 120.0  # seconds


@pytest.fixture(scope="session")
def tiny(make_aim, make_vq):
    """A pipeline of images of 6 pixels and 9 tokens."""
    from aimamba.pipeline import Pipeline

    return Pipeline(make_vq(), make_aim(), NAMES, engine="plain")


@pytest.fixture
def make_service(tiny):
    """Make services with settings of a test."""
    from aimamba.generation.scheduler import SchedulerConfig
    from aimamba.serve.config import ServeConfig
    from aimamba.serve.service import Service

    def make(**settings):
        limits = {"images": 4, "reserved": 1, "waiting": 16} | settings.pop("scheduler", {})
        config = ServeConfig(
            **({"images_per_request": 9, "grace_seconds": 5.0} | settings), scheduler=SchedulerConfig(**limits)
        )
        return Service(tiny, "tiny", config)

    return make


class Server:
    """``aimamba studio`` of the packaged weights as a process, which can be ended and started again."""

    def __init__(self, cache):
        self.port, self.process, self._cache = 0, None, cache

    def start(self, *options, key=None):
        import aimamba

        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(aimamba.__file__).parents[1])}
        environment |= {"AIMAMBA_CACHE": str(self._cache)} | ({"AIMAMBA_API_KEY": key} if key else {})
        command = [sys.executable, "-m", "aimamba", "studio", "--port", str(self.port), "--device", "cpu", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.process.stdout.readline()
        line = self.process.stdout.readline()
        assert "the studio at" in line, line + self.process.stderr.read()
        self.port = int(line.rsplit(":", 1)[1].split("/")[0])
        return self

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/studio/"

    def stop(self, number=signal.SIGTERM):
        """End it and return exit status and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def make_server(make_cache):
    """Start servers, which share a cache: thumbnails are made once."""
    cache, servers = make_cache(), []

    def make(*options, **settings):
        servers.append(Server(cache))
        return servers[-1].start(*options, **settings)

    yield make
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium of the system."""
    if "AIMAMBA_TEST_PAGE" not in os.environ:
        pytest.skip("minutes long: make test-studio")
    if find_spec("playwright") is None:
        pytest.skip("needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, then make test-studio")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
