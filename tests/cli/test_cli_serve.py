"""The command ``serve``: one real server, asked, hung up on and ended; and what it says when it cannot begin."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aimamba
from aimamba.cli import main

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

KEY = "a-key-of-sixteen-letters"
BODY = {"classes": ["planets"], "seed": 3, "cfg_scale": 1.5, "top_k": 50}


@pytest.fixture
def server(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"another-key-of-letters\n{KEY}\n", encoding="ascii")
    command = ["-m", "aimamba", "serve", "--port", "0", "--device", "cpu", "--api-key-file", str(keys)]
    process = subprocess.Popen(
        [sys.executable, *command, "--idle-timeout", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(aimamba.__file__).parents[1])},
    )
    line = process.stdout.readline()
    found = re.search(r"avatars-64 at http://127\.0\.0\.1:(\d+)", line)
    try:
        assert found, line
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask(port, path, body=None, seconds=120):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return answer.read()


def test_a_server_answers_survives_clients_that_hang_and_ends_in_order(server, tmp_path):
    process, port = server
    hanging = socket.create_connection(("127.0.0.1", port))
    hanging.sendall(b"POST /v1/images HTTP/1.1\r\nHost: here\r\n")  # and nothing more
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60)
    refused.value.close()

    [image] = json.loads(ask(port, "/v1/images", BODY))["images"]
    settings = [
        "--classes",
        "planets",
        "-n",
        "1",
        "--seed",
        "3",
        "--cfg-scale",
        "1.5",
        "--top-k",
        "50",
        "--device",
        "cpu",
    ]
    assert main(["sample", *settings, "--out", str(tmp_path / "out")]) == 0
    file = (tmp_path / "out" / "planets-seed3.png").read_bytes()
    assert np.array_equal(
        *(np.asarray(Image.open(io.BytesIO(each))) for each in (base64.b64decode(image["b64_json"]), file))
    )

    example = Path(__file__).parents[2] / "examples" / "client.py"
    client = [sys.executable, str(example), f"http://127.0.0.1:{port}"]
    subprocess.run(client, cwd=tmp_path, env={**os.environ, "AIMAMBA_API_KEY": KEY}, check=True, timeout=120)
    assert {path.name for path in tmp_path.glob("*.png")} == {"image.png", *(f"preview-{n}.png" for n in (16, 32, 48))}

    assert main(["serve", "--port", str(port)]) == 2  # taken
    hanging.settimeout(60)
    assert hanging.recv(100) == b""  # the server has hung up
    hanging.close()

    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(port, "/v1/images", BODY | {"n": 12, "format": "png"})))
    thread.start()
    while b"aimamba_running_images 0.0" in ask(port, "/metrics"):
        pass
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    thread.join()
    assert answers[0].startswith(b"PK")  # an archive: what was running has been finished
    assert (process.returncode, errors) == (0, "")


def test_a_port_that_is_taken_and_other_faults_are_one_line(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert (
        capsys.readouterr().err
        == f"aimamba: port {port} on 127.0.0.1 is taken by another program; give another --port\n"
    )
    (tmp_path / "keys").write_text("\n")
    for arguments, message in (
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 8000"),
        (["--port", "70000"], "--port must be 0 to 65535, got 70000"),
        (["--images", "0"], "images generated together must be 1 to 4,096, got 0"),
        (["--queue", "10"], "must not be more than the images that may wait"),
        (["--api-key-file", str(tmp_path / "keys")], "there is no key in it"),
        (["--api-key-file", str(tmp_path / "none")], "no such file"),
        (["--grace", "nan"], "grace seconds must be 0 or more"),
        (["--port", "0", "no-such-model"], "no-such-model"),
    ):
        assert main(["serve", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert message in line.replace("No such", "no such")


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name in ("fastapi", "uvicorn") else find_spec(name, *rest),
    )
    assert main(["serve"]) == 2
    message = "serve needs fastapi, uvicorn; install it: pip install 'aimamba[serve]'"
    assert capsys.readouterr().err == f"aimamba: {message}\n"


def test_the_studio_names_what_it_misses(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "gradio" else object())
    for command in (["studio"], ["serve", "--studio"]):
        assert main(command) == 2
        message = "studio needs gradio; install it: pip install 'aimamba[studio]'"
        assert capsys.readouterr().err == f"aimamba: {message}\n"
    assert main(["serve", "--studio", "--ray"]) == 2
    assert "the studio has no effect with --ray" in capsys.readouterr().err
