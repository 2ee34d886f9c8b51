"""The gate in Ray's proxy, without Ray: what a client gets when a replica is lost; and numbers of several replicas."""

import asyncio
import json

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from aimamba.serve.gate import Gate, Named
from aimamba.serve.metrics import Found, together

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"image/png")]}
EVENTS = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
PART, END = (
    {"type": "http.response.body", "body": body, "more_body": more} for body, more in ((b"a", True), (b"b", False))
)


def asked(app, path="/v1/images"):
    """The status, headers and body that a client gets."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(app)({"type": "http", "path": path}, None, send))
    assert [each["type"] for each in sent] == ["http.response.start", *["http.response.body"] * (len(sent) - 1)]
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each["body"] for each in sent[1:])


def saying(*messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


def test_an_answer_of_a_replica_passes():
    status, headers, body = asked(Named(saying(START, PART, END), "abc"))
    assert (status, headers[b"x-replica"], headers[b"content-type"], body) == (200, b"abc", b"image/png", b"ab")


@pytest.mark.parametrize(
    "app",
    [
        saying(),  # the replica was lost before it answered
        Named(saying(START), "abc"),  # or after the headers
        saying(START | {"status": 404}, END),  # Ray has no replica
    ],
)
def test_what_is_not_of_a_replica_is_a_503_to_ask_again(app):
    status, headers, body = asked(app)
    assert (status, headers[b"retry-after"], headers[b"content-type"]) == (503, b"2", b"application/json")
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == (503, "server_error")
    assert "ask again" in error["message"]


def test_a_stream_that_breaks_off_ends_with_an_error_and_a_file_does_not_look_whole():
    _, _, body = asked(Named(saying(EVENTS, PART), "abc"))
    name, data, *_ = body.removeprefix(b"a").decode().splitlines()
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == 503
    assert asked(Named(saying(START, PART), "abc"))[2] == b"a"  # and no end: the server closes the connection


def test_what_ray_says_of_itself_passes():
    assert asked(saying(START, END), "/-/healthz")[0] == 200


def test_numbers_of_replicas_are_told_apart():
    numbers = {}
    for name, value in (("b", 2), ("a", 1)):
        registry = CollectorRegistry()
        Gauge("running", "Images", ("kind",), registry=registry).labels("all").set(value)
        numbers[name] = list(registry.collect())
    text = generate_latest(Found(together(numbers))).decode()
    assert text.count("# TYPE running gauge") == 1
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        'running{kind="all",replica="a"} 1.0',
        'running{kind="all",replica="b"} 2.0',
    ]
