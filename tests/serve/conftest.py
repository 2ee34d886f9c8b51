"""A server of a tiny model, without a network."""

import threading

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from fastapi.testclient import TestClient

NAMES = ("plain", "spotted, small", "striped", "round", "odd")


@pytest.fixture(scope="session")
def tiny(make_aim, make_vq):
    """A pipeline of images of 6 pixels and 9 tokens."""
    from aimamba.pipeline import Pipeline

    return Pipeline(make_vq(), make_aim(), NAMES, engine="plain")


@pytest.fixture
def make_client(tiny):
    """Start servers with settings of a test."""
    from aimamba.generation.scheduler import SchedulerConfig
    from aimamba.serve.app import make_app
    from aimamba.serve.config import ServeConfig
    from aimamba.serve.service import Service

    opened = []

    def make(pipeline=None, **settings):
        limits = {"images": 4, "reserved": 1, "waiting": 16} | settings.pop("scheduler", {})
        config = ServeConfig(
            **({"images_per_request": 8, "grace_seconds": 5.0} | settings), scheduler=SchedulerConfig(**limits)
        )
        service = Service(pipeline or tiny, "tiny", config)
        client = TestClient(make_app(service), raise_server_exceptions=False)
        client.service = service
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client):
    return make_client()


class Brake:
    """Stops the scheduler before its next step until it is released."""

    def __init__(self, service):
        self._go, self._service, self._step = threading.Event(), service, service.scheduler.step
        service.scheduler.step = self._braked

    def _braked(self):
        assert self._go.wait(60)
        return self._step()

    def release(self):
        self._go.set()


@pytest.fixture
def brake():
    brakes = []

    def make(client):
        brakes.append(Brake(client.service))
        return brakes[-1]

    yield make
    for each in brakes:
        each.release()
