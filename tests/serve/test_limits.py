"""What the server refuses, and clients that leave, hang or come too many."""

import asyncio
import threading

import pytest
import torch

from aimamba.errors import ConfigError
from tests.until import until

KEY = "a-key-of-sixteen-letters"
ONE = {"classes": [0]}


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()["error"]
    assert found["code"] == status
    assert "Traceback" not in answer.text
    return found


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        ("/v1/images", {}, "classes", "nothing to generate"),
        ("/v1/images", {"classes": []}, "classes", "at least 1 item"),
        ("/v1/images", {"classes": ["strip"]}, "classes[0]", "did you mean 'striped'"),
        ("/v1/images", {"classes": [0, 5]}, "classes[1]", "unknown class 5"),
        ("/v1/images", {"classes": [True]}, "classes[0]", ": Input should be a valid string or a valid integer"),
        ("/v1/images", {"classes": [-1]}, "classes[0]", "greater than or equal to 0"),
        ("/v1/images", {"classes": [""]}, "classes[0]", "at least 1 character"),
        ("/v1/images", {"classes": [0], "negative": -2}, "negative", "greater than or equal to 0"),
        ("/v1/images", ONE | {"temperature": -0.5}, "temperature", "greater than or equal to 0"),
        ("/v1/images", ONE | {"temperature": "1"}, "temperature", "valid number"),
        ("/v1/images", ONE | {"top_p": 0}, "top_p", "greater than 0"),
        ("/v1/images", ONE | {"top_k": 1.5}, "top_k", "valid integer"),
        ("/v1/images", ONE | {"cfg_schedule": "steep"}, "cfg_schedule", "'constant', 'linear' or 'power-cosine'"),
        ("/v1/images", ONE | {"seed": 1 << 63}, "seed", "less than or equal"),
        ("/v1/images", ONE | {"seed": (1 << 63) - 1, "n": 2}, "seed", "too large for 2 images"),
        ("/v1/images", ONE | {"n": 9}, "n", "9 images are more than the 8"),
        ("/v1/images", ONE | {"seeds": [1, 2], "n": 3}, "n", "n is 3 and there are 2 seeds"),
        ("/v1/images", ONE | {"format": "gif"}, "format", "'json', 'png' or 'webp'"),
        ("/v1/images", ONE | {"temprature": 1}, "temprature", "Extra inputs"),
        ("/v1/images", ONE | {"negative": 1}, "negative", "no effect without guidance; give cfg_scale"),
        ("/v1/images", ONE | {"cfg_start": 0.5}, "cfg_start", "no effect without guidance"),
        ("/v1/images", ONE | {"cfg_scale": 2.0, "cfg_power": 2.0}, "cfg_power", "no effect with cfg_schedule constant"),
        ("/v1/images/stream", ONE | {"temperature": 0.0, "top_k": 5}, "top_k", "no effect at temperature 0"),
        ("/v1/images", ONE | {"seed": 1, "seeds": [2]}, "seed", "no effect beside seeds"),
        ("/v1/interpolations", {"a": 0, "b": 1, "cfg_end": 0.5}, "cfg_end", "no effect without guidance"),
        ("/v1/images/generations", {"prompt": "odd", "cfg_schedule": "linear"}, "cfg_schedule", "no effect"),
        ("/v1/images/stream", ONE | {"every": 0}, "every", "greater than or equal to 1"),
        ("/v1/images/generations", {"prompt": "cats"}, "prompt", "unknown class 'cats'"),
        ("/v1/images/generations", {"prompt": " , "}, "prompt", "names no class"),
        ("/v1/images/generations", {"prompt": "odd", "size": "1024x1024"}, "size", "images are 6x6"),
        ("/v1/images/generations", {"prompt": "odd", "response_format": "url"}, "response_format", "b64_json"),
        ("/v1/images/generations", {"prompt": "odd", "stream": True}, "stream", "False"),
        ("/v1/images/generations", {"prompt": "odd", "model": "dall-e-3"}, "model", "there is 'tiny'"),
    ],
)
def test_a_wrong_field_is_named(client, path, body, field, message):
    found = error(client.post(path, json=body), 422)
    assert found["param"] == field
    assert message in found["message"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b"\xff\xfe", 422),
        (b'{"classes": [0, "\\ud800"]}', 422),
        (b"[" * 30_000, 400),
        (b'{"classes": [' + b"9" * 5000 + b"]}", 400),
        (b'{"classes": [0], "temperature": NaN}', 422),
        (b"null", 422),
        (b'{"classes": ["' + b"x" * 70_000 + b'"]}', 413),
    ],
)
def test_rubbish_is_refused(client, content, status):
    error(client.post("/v1/images", content=content, headers={"content-type": "application/json"}), status)


def test_bodies_of_another_kind_or_length_are_refused(client):
    assert (
        "got text/plain"
        in error(client.post("/v1/images", content=b"{}", headers={"content-type": "text/plain"}), 415)["message"]
    )
    assert "got none" in error(client.post("/v1/images", content=b"{}"), 415)["message"]
    chunks = (b" " * 1000 for _ in range(100))  # without a length
    error(client.post("/v1/images", content=chunks, headers={"content-type": "application/json"}), 413)
    error(client.post("/healthz"), 405)
    error(client.get("/nowhere"), 404)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/tiny", "/openapi.json"])
def test_head_is_get_without_the_body(client, path):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    error(client.get("/v1/images"), 405)
    assert client.head("/v1/images").status_code == 405


def test_a_slash_at_the_end_is_no_redirect(client):
    answer = client.post("/v1/images/", json=ONE, follow_redirects=False)
    assert answer.status_code == 200
    assert client.get("/v1/models/", follow_redirects=False).json() == client.get("/v1/models").json()
    assert error(client.post("/v1/images/", content=b"{}"), 415)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000")),
        *((host, 400) for host in ("", "evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example")),
    ],
)
def test_other_names_of_the_server_are_refused(make_client, host, status):
    client = make_client(hosts=("localhost", "127.0.0.1", "::1"))
    answer = client.get("/healthz", headers={"host": host})
    assert answer.status_code == status
    if status == 400:
        assert "--allowed-hosts" in error(answer, 400)["message"]


def test_a_load_balancer_may_ask_without_a_name(make_client):
    """By HTTP/1.0, where ``Host`` may be missing; every browser sends it."""
    client, sent = make_client(hosts=("localhost",)), []

    async def ask(version):
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message.get("status"))

        scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": [], "query_string": b""}
        about = {"raw_path": b"/healthz", "root_path": "", "scheme": "http", "http_version": version}
        await client.app(scope | about, receive, send)

    for version in ("1.0", "1.1"):
        asyncio.run(ask(version))
    assert [status for status in sent if status] == [200, 400]


def test_a_key_is_asked_for(make_client):
    client = make_client(api_keys=("another-key-of-letters", KEY))
    assert error(client.post("/v1/images", json=ONE), 401)["type"] == "authentication_error"
    for headers in ({"authorization": f"Bearer {KEY}x"}, {"x-api-key": ""}, {"authorization": f"Basic {KEY}"}):
        error(client.get("/metrics", headers=headers), 401)
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert client.post("/v1/images", json=ONE, headers=headers).status_code == 200
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_pages_of_other_origins_may_use_it_only_where_that_is_said(make_client):
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in make_client().options("/v1/images", headers=asked).headers
    allowed = make_client(origins=("https://page.example",)).options("/v1/images", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"


def test_a_full_queue_says_when_to_come_again(make_client, brake):
    client = make_client(scheduler={"images": 1, "reserved": 0, "waiting": 8})
    held, answers = brake(client), []
    first = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json=ONE | {"n": 8})))
    first.start()
    until(lambda: client.service.scheduler.waiting >= 7)
    answer = client.post("/v1/images", json=ONE | {"n": 8})
    assert error(answer, 429)["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) >= 1
    error(client.post("/v1/images/stream", json=ONE | {"n": 8}), 429)  # a status, not an event
    held.release()
    first.join()
    assert answers[0].status_code == 200  # nothing is lost


def test_a_request_that_takes_too_long_is_given_up(make_client, brake):
    client = make_client(request_seconds=0.2)
    held = brake(client)
    assert "too long" in error(client.post("/v1/images", json=ONE), 504)["message"]
    held.release()
    until(lambda: client.service.scheduler.cancelled == 1)
    assert client.post("/v1/images", json=ONE).status_code in (200, 504)


@pytest.mark.parametrize("path", ["/v1/images", "/v1/completions"])
@pytest.mark.parametrize("pause", [30, 0.01])
def test_a_body_that_does_not_come_or_too_slowly_is_given_up(make_client, path, pause):
    client = make_client(idle_seconds=0.1)
    kind = b"application/json" if path == "/v1/images" else b"multipart/form-data; boundary=" + b"-" * 60

    async def ask():
        sent = []

        async def receive():
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": b"-", "more_body": True}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"content-type", kind)],
            "query_string": b"",
        }
        await client.app(scope | {"raw_path": path.encode(), "root_path": "", "scheme": "http"}, receive, send)
        return sent

    sent = asyncio.run(ask())
    assert sent[0]["status"] == 408
    assert b"in time" in sent[1]["body"]


@pytest.mark.parametrize("path", ["/v1/images", "/v1/images/stream"])
def test_images_of_a_client_that_leaves_leave_the_batch(client, brake, path):
    held, scheduler = brake(client), client.service.scheduler

    async def ask():
        messages = [{"type": "http.request", "body": b'{"classes": [0], "n": 8}', "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not scheduler.waiting:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            return None

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        await client.app(scope | {"raw_path": path.encode(), "root_path": "", "scheme": "http"}, receive, send)

    asyncio.run(ask())
    held.release()
    until(lambda: scheduler.cancelled == 8)
    until(lambda: scheduler.running == scheduler.waiting == 0)
    assert client.post("/v1/images", json=ONE).status_code == 200


def test_what_fails_while_it_is_generated_is_reported_without_details(client, make_client, make_aim, make_vq, caplog):
    from aimamba.pipeline import Pipeline

    client.service.scheduler._batch.step = None
    found = error(client.post("/v1/images", json=ONE), 500)
    assert "see the server's log" in found["message"]
    assert "a decoding step failed" in caplog.text
    damaged = make_aim()
    with torch.no_grad():
        damaged.condition.table.weight[1] = torch.nan
    sick = make_client(Pipeline(make_vq(), damaged, engine="plain"))
    assert "weights are damaged" in error(sick.post("/v1/images", json={"classes": [1]}), 500)["message"]
    assert sick.post("/v1/images", json=ONE).status_code == 200
    assert 'data: {"error"' in sick.post("/v1/images/stream", json={"classes": [1], "every": 1}).text


def test_a_server_that_drains_finishes_what_is_there_and_takes_nothing_more(client, brake):
    held, answers = brake(client), []
    first = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json=ONE)))
    first.start()
    until(lambda: client.service.scheduler.waiting + client.service.scheduler.running)
    client.service.drain()
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    answer = client.post("/v1/images", json=ONE)
    assert "shutting down" in error(answer, 503)["message"]
    assert answer.headers["retry-after"]
    held.release()
    first.join()
    assert answers[0].status_code == 200


def test_requests_may_end_while_a_server_begins_to_drain(client):
    mailboxes = client.service._mailboxes

    class Ending:
        def wake(self):
            mailboxes.discard(self)

    mailboxes.update((Ending(), Ending()))
    client.service.drain()
    assert not mailboxes


def test_what_is_not_finished_in_the_time_of_grace_is_given_up(make_client, brake):
    client = make_client(grace_seconds=0.2)
    held, answers = brake(client), []
    first = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json=ONE)))
    first.start()
    until(lambda: client.service.scheduler.waiting)
    client.service.drain()
    first.join()
    error(answers[0], 503)
    held.release()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_request": 0}, "images per request must be 1 or more, got 0"),
        (
            {"images_per_request": 17},
            r"images per request \(17\) must not be more than the images that may wait \(16\)",
        ),
        ({"request_seconds": 0.0}, "request seconds must be above 0, got 0"),
        ({"grace_seconds": float("nan")}, "grace seconds must be 0 or more, got nan"),
        ({"api_keys": ("short",)}, "at least 16 visible ASCII characters"),
    ],
)
def test_settings_are_checked(make_client, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_client(**settings)
