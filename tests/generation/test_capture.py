"""Captures without a device: a stand-in for what ``torch.cuda`` does while a stream is captured."""

import threading
from contextlib import contextmanager

import pytest
import torch

from aimamba.generation import capture as module
from aimamba.generation.capture import capture


class Graph:
    def replay(self):
        pass


class Device:
    """Streams of threads, and which of them was captured on."""

    def __init__(self, monkeypatch, number=0, wait=None):
        self.number, self.wait, self.under_way, self.used = number, wait, 0, []
        self.own = threading.local()
        for name in ("graph", "current_stream", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: (device, object()))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.number)
        monkeypatch.setattr(module, "_stream_of", module.cache(module._stream_of.__wrapped__))

    def current_stream(self):
        return getattr(self.own, "stream", "the default")

    def set_stream(self, stream):
        self.own.stream = stream

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        if self.under_way:
            raise RuntimeError("operation not permitted when stream is capturing")
        before, self.own.stream = self.current_stream(), stream
        self.under_way += 1
        self.used.append(stream)
        try:
            yield  # as PyTorch does it, an error leaves the stream as it is
        finally:
            self.under_way -= 1
        self.own.stream = before


def test_devices_have_streams_of_their_own(monkeypatch):
    device = Device(monkeypatch)
    for device.number in (0, 1, 0):
        capture(lambda: None, warm_up=0)
    first, second, third = device.used
    assert (first[0], second[0]) == (0, 1)
    assert first is third, "each stream has memory of its own"


def test_threads_capture_one_after_the_other(monkeypatch):
    device, inside, done = Device(monkeypatch), threading.Event(), threading.Event()

    def slow():
        inside.set()
        done.wait(10)
        return "slow"

    found = []
    threads = [threading.Thread(target=lambda run=run: found.append(capture(run, warm_up=0)())) for run in (slow, int)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    threads[1].join(0.05)
    done.set()
    for thread in threads:
        thread.join(10)
    assert found == ["slow", 0]
    assert device.used[0] is device.used[1]


def test_a_capture_that_fails_leaves_the_stream_of_before(monkeypatch):
    device = Device(monkeypatch)

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        capture(fail, warm_up=0)
    assert device.current_stream() == "the default"
    assert capture(lambda: 1, warm_up=0)() == 1
