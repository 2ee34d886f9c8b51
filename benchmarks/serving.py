"""Load on ``aimamba serve``: ``python -m benchmarks.serving``.

Starts a server of its own, and asks it for images from many clients at once, each of which asks again as soon as it has
its answer. Before and after, the same process generates batches without a server: the offline rate, to which the served
one is compared, since both depend on what else the machine does. Beside the clients that are measured there may be
others that hang, leave early or send rubbish. Some of the images are compared with the offline ones, pixel by pixel.

Processor time for each image, of the server, of its clients and offline, says where the rest goes. It depends less on
what else the machine does than the rates.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline

_BATCH = 32
_COMPARED = 8  # images
_RUBBISH = (b"{", b"\xff" * 100, b"[" * 20_000, b'{"classes": ["nothing"]}', b'{"classes": [0], "temperature": -1}')
_MIXED: list[dict[str, Any]] = [{}, {"temperature": 0.8}, {"cfg_scale": 1.5}, {"top_p": 0.95}, {"top_k": 100}]


@dataclass
class Load:
    """What came of the requests.

    Attributes:
        seconds: Time that each image took.
        answers: Number of answers by status, of clients that behave.
        refused: The same of those that send rubbish.
        images: Some images with what they were asked with.
        memory: Bytes of memory of the server, each second.
        processor: Seconds of processor time of the server and of the clients.
    """

    seconds: list[float] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    images: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    processor: tuple[float, float] = (0.0, 0.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description="Measure aimamba serve under load."
    )
    parser.add_argument("--model", default="avatars-64")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=40.0, help="of load; 600 shows whether memory grows")
    parser.add_argument("--offline-seconds", type=float, default=15.0, help="before and again after the load")
    parser.add_argument("--bad", type=int, default=0, help="clients of each kind that hang, leave early, send rubbish")
    parser.add_argument("--mixed", action="store_true", help="other settings in each request, not only other classes")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args()
    pipeline = Pipeline.from_pretrained(options.model)
    labels = pipeline.generator.config.num_classes
    with _server(options.model) as (process, url):
        before = _offline(pipeline, labels, options.offline_seconds)
        used, own = _processor_seconds(process.pid), time.process_time()
        load = asyncio.run(_ask(url, process.pid, labels, options))
        load.processor = _processor_seconds(process.pid) - used, time.process_time() - own
        after = _offline(pipeline, labels, options.offline_seconds)
        counted = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    found = _summary(load, before, after, options.seconds) | {
        "compared": sum(_equal(pipeline, wanted, file) for wanted, file in load.images),
        "of": len(load.images),
        "cancelled": _metric(counted, "aimamba_cancelled_images_total"),
        "left_running": _metric(counted, "aimamba_running_images"),
        "exit_status": status,
        "clients": options.clients,
        "bad_clients": 3 * options.bad,
        "mixed": options.mixed,
    }
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


class _server:  # noqa: N801 - used as a function
    """A server of a model while the block runs."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "aimamba", "serve", model, "--port", "0", "--device", "cpu"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> tuple["subprocess.Popen[str]", str]:
        assert self._process.stdout is not None
        found = re.search(r"http://[\d.]+:\d+", self._process.stdout.readline())
        if found is None:
            raise SystemExit("serving: the server did not start; its message stands above")
        return self._process, found[0]

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def _processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _offline(pipeline: Pipeline, labels: int, seconds: float) -> tuple[float, float]:
    """Return the images that batches give each second, decoded, and the processor seconds of each."""
    list(pipeline.batches([[(0, 0)]], SamplingConfig()))  # prepares engine and decoder
    started, used, count = time.perf_counter(), time.process_time(), 0

    def batches() -> Iterator[list[tuple[int, int]]]:
        while time.perf_counter() - started < seconds:
            yield [(index % labels, count + index) for index in range(_BATCH)]

    for finished in pipeline.batches(batches(), SamplingConfig()):
        count += len(finished.images)
    return count / (time.perf_counter() - started), (time.process_time() - used) / max(1, count)


async def _ask(url: str, pid: int, labels: int, options: argparse.Namespace) -> Load:
    load, end = Load(), time.monotonic() + options.seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        tasks = [_good(client, load, number, labels, end, options.mixed) for number in range(options.clients)]
        for _ in range(options.bad):
            tasks += [_hanging(url, end), _leaving(client, labels, end), _rubbish(client, load, end)]
        await asyncio.gather(*tasks, _watch_memory(pid, load, end))
    return load


async def _good(client: httpx.AsyncClient, load: Load, number: int, labels: int, end: float, mixed: bool) -> None:
    asked = 0
    while (started := time.monotonic()) < end:
        settings = _MIXED[asked % len(_MIXED)] if mixed else {}
        wanted = {"classes": [(number + asked) % labels], "seed": number * 100_000 + asked, **settings}
        answer = await client.post("/v1/images", json=wanted)
        load.answers[answer.status_code] += 1
        if answer.status_code == 200:
            file = base64.b64decode(answer.json()["images"][0]["b64_json"])
            load.seconds.append(time.monotonic() - started)
            if len(load.images) < _COMPARED and asked == 1:
                load.images.append((wanted, file))
        elif answer.status_code == 429:
            await asyncio.sleep(float(answer.headers["retry-after"]))
        asked += 1


async def _hanging(url: str, end: float) -> None:
    """Open a connection, send half a request, and wait until the server hangs up."""
    host, port = url.removeprefix("http://").split(":")
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/images HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n")
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + end - time.monotonic()):
                await reader.read()
        except TimeoutError:
            pass
        writer.close()


async def _leaving(client: httpx.AsyncClient, labels: int, end: float) -> None:
    """Ask for images and leave before they are there."""
    while time.monotonic() < end:
        try:
            await client.post("/v1/images", json={"classes": [random.randrange(labels)], "n": 2}, timeout=0.3)
        except httpx.TimeoutException:
            await asyncio.sleep(0.5)


async def _rubbish(client: httpx.AsyncClient, load: Load, end: float) -> None:
    while time.monotonic() < end:
        answer = await client.post(
            "/v1/images", content=random.choice(_RUBBISH), headers={"content-type": "application/json"}
        )
        load.refused[answer.status_code] += 1
        await asyncio.sleep(0.2)


async def _watch_memory(pid: int, load: Load, end: float) -> None:
    status = Path(f"/proc/{pid}/status")
    while time.monotonic() < end and status.exists():
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text(encoding="ascii"))
        load.memory += [int(found[1]) << 10] if found else []
        await asyncio.sleep(1)


def _summary(load: Load, before: tuple[float, float], after: tuple[float, float], seconds: float) -> dict[str, Any]:
    offline, rate = (before[0] + after[0]) / 2, len(load.seconds) / seconds
    server, clients = (1000 * each / max(1, len(load.seconds)) for each in load.processor)
    ordered = sorted(load.seconds) or [float("nan")]
    quarter = max(1, len(load.memory) // 4)
    return {
        "images_per_second": round(rate, 2),
        "offline_before": round(before[0], 2),
        "offline_after": round(after[0], 2),
        "ratio": round(rate / offline, 3),
        "processor_ms": {
            "offline": round(500 * (before[1] + after[1]), 1),
            "server": round(server, 1),
            "clients": round(clients, 1),
        },
        "p50_seconds": round(ordered[len(ordered) // 2], 3),
        "p95_seconds": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "answers": dict(load.answers),
        "refused": dict(load.refused),
        "memory_mb_second_quarter": round(statistics.median(load.memory[quarter : 2 * quarter] or [0]) / 1e6, 1),
        "memory_mb_last_quarter": round(statistics.median(load.memory[-quarter:] or [0]) / 1e6, 1),
    }


@torch.inference_mode()
def _equal(pipeline: Pipeline, wanted: dict[str, Any], file: bytes) -> bool:
    """Whether an image is the one that the pipeline generates alone."""
    settings = {name: value for name, value in wanted.items() if name not in ("classes", "seed")}
    [image] = pipeline(wanted["classes"], 1, SamplingConfig(**settings, seed=wanted["seed"]))
    return np.array_equal(np.asarray(Image.open(io.BytesIO(file))), np.asarray(image))


def _metric(text: str, name: str) -> float:
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


if __name__ == "__main__":
    main()
