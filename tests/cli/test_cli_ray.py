"""``--ray``: a local Ray with two workers or replicas, of which one is killed, and what is refused."""

import importlib.util
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.refusals import one_line_error
from tests.until import until

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install 'aimamba[ray]'")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def local_ray(cache):
    """A Ray of this machine, which the commands of all tests find and leave: starting it takes longest."""
    from aimamba.cluster.workers import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIMAMBA_CACHE", str(cache))  # by which its workers are known
        with connected("local", device="cpu"):
            import ray

            folder = Path(ray._private.worker.global_worker.node.get_temp_dir_path())
            yield
    assert not ray.is_initialized()
    assert not folder.exists()


def workers(kind: str = "MapWorker") -> list[int]:
    """Processes of Ray that hold a model."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if name.startswith(f"ray::{kind}".encode()) and os.environ["AIMAMBA_CACHE"].encode() in environment:
            assert b"RAY_USAGE_STATS_ENABLED=0" in environment, "nothing is sent to anyone"
            found.append(int(place.name))
    return found


class KilledOnce:
    """Kills one worker as soon as some results are there."""

    def __init__(self, results: Path) -> None:
        self.killed = threading.Event()
        self._over = threading.Event()
        self._results = results
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(0.01):
            there = list(self._results.glob("codes-*.npy"))
            if there and (found := workers()):
                os.kill(found[-1], signal.SIGKILL)
                self.killed.set()
                return


@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_encode_and_sample_lose_and_double_nothing(aimamba, models, photos, here, local_ray):
    encode = ["encode", models / "tokenizer", "photos", "--size", 16, "--batch-size", 1, "--views", "center-flip"]
    assert aimamba(*encode, "--out", "alone")[0] == 0
    with KilledOnce(here / "shared" / "train" / "parts") as once:
        answer = aimamba(*encode, "--out", "shared", "--device", "cpu", "--ray-workers", 2, "--ray")
    assert answer.status == 0, answer.err
    assert once.killed.is_set()
    assert "a worker was lost" in answer.err
    assert "ray" not in answer.err.replace("Ray starts another one", "").lower(), "Ray is quiet"
    assert files_of(here / "shared") == files_of(here / "alone")

    sample = ["sample", "--model", models / "pipeline", "-n", 40, "--batch-size", 2, "--npz"]
    assert aimamba(*sample, "alone.npz", "--device", "cpu")[0] == 0
    with KilledOnce(here / "shared.npz.parts") as once:
        answer = aimamba(*sample, "shared.npz", "--ray-workers", 2, "--ray")
    assert answer.status == 0, answer.err
    assert once.killed.is_set()
    assert (here / "shared.npz").read_bytes() == (here / "alone.npz").read_bytes()
    settings = [(here / f"{name}.settings.json").read_text() for name in ("alone", "shared")]
    assert settings[0] == settings[1]
    assert not (here / "shared.npz.parts").exists()


@needs_ray
def test_a_cluster_whose_workers_are_all_busy_is_told(local_ray, monkeypatch, capfd):
    import ray

    from aimamba.cluster import workers as cluster

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    def occupy() -> None:
        time.sleep(4)

    monkeypatch.setattr(cluster, "_SILENT", 0.2)
    busy = occupy.remote()
    until(lambda: ray.available_resources().get("CPU", 0) == 0)
    assert cluster.Cluster(1, "cpu").call(bool) is False
    assert capfd.readouterr().err == "aimamba: waits for a free CPU of the Ray cluster\n"
    ray.get(busy)


class Clients:
    """Asks a server of two replicas, of which one is stopped and killed meanwhile, and ends it by Ctrl-C."""

    def __init__(self, port: int, body: dict[str, object]) -> None:
        self.found: dict[str, object] = {}
        self._url, self._body = f"http://127.0.0.1:{port}", body
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()

    def _run(self):
        try:
            with httpx.Client(base_url=self._url, timeout=120) as client, ThreadPoolExecutor(6) as pool:
                self._ask(client, pool)
        except BaseException as error:
            self.found["error"] = error
            os.kill(os.getpid(), signal.SIGINT)

    def _ask(self, client, pool):
        until(lambda: answers(client, "/readyz"), 120)
        replicas = self._replicas(client)
        first, second = workers("ServeReplica")
        over = threading.Event()
        asked = [pool.submit(self._go_on, client, over) for _ in range(6)]
        over.wait(1)
        os.kill(second, signal.SIGSTOP)  # what it has been given hangs
        over.set()
        assert wait(asked, timeout=1).not_done
        os.kill(second, signal.SIGKILL)
        self.found["answers"] = [answer for each in asked for answer in each.result()]
        until(lambda: len(self._replicas(client) - replicas) == 1 and len(self._replicas(client)) == 2, 120)
        assert first in workers("ServeReplica")
        self.found["again"] = client.post("/v1/images", json=self._body)
        events = []
        with client.stream("POST", "/v1/images/stream", json=STREAM) as answer:
            for line in answer.iter_lines():
                events += [line] if line.startswith("event: ") else []
                if len(events) == 1:
                    os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C
        self.found["events"] = events
        until(lambda: not workers("ServeReplica"), 60)

    def _go_on(self, client, over):
        found = [client.post("/v1/images", json=self._body)]
        while not over.is_set():
            found.append(client.post("/v1/images", json=self._body))
        return found

    def _replicas(self, client) -> set[str]:
        return set(re.findall(r'aimamba_steps_total{replica="(\w+)"}', client.get("/metrics").text))


def answers(client, path) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


STREAM = {"classes": [0], "n": 32, "every": 1}


@needs_ray
@pytest.mark.skipif(
    "AIMAMBA_TEST_REPLICAS" not in os.environ, reason="long, and of little use beside others: make test-replicas"
)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the replicas in /proc")
def test_a_killed_replica_is_a_503_and_comes_back(aimamba, models, pipeline, here, local_ray):
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'aimamba[ray]'", exc_type=ImportError)
    from aimamba.generation import SamplingConfig

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    body = {"classes": [0], "seed": 3, "format": "png"}
    command = ["serve", models / "pipeline", "--ray", "--replicas", 2, "--port", port, "--device", "cpu"]
    with Clients(port, body) as clients:
        answer = aimamba(*command)
    found = clients.found
    assert "error" not in found, found["error"]
    assert answer.status == 0, answer.err
    assert (
        answer.out == f"{models / 'pipeline'} at http://127.0.0.1:{port}, described at http://127.0.0.1:{port}/docs\n"
    )
    assert answer.err == "aimamba: a replica was lost; Ray starts another one\n"

    [expected] = pipeline([0], 1, SamplingConfig(seed=3), output_type="numpy")
    statuses = {each.status_code for each in found["answers"]}
    assert statuses == {200, 503}
    for each in [*found["answers"], found["again"]]:
        if each.status_code == 200:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(each.content))), expected)
        else:
            assert each.headers["retry-after"] == "2"
            assert each.json()["error"]["code"] == 503
    assert found["events"].count("event: image") == 32  # Ctrl-C ends what was begun
    assert found["events"][-1] == "event: done"
    assert not any(workers(kind) for kind in ("ServeReplica", "ProxyActor", "ServeController"))


SAMPLE, ENCODE = "sample --model MODELS/pipeline --npz x.npz", "encode MODELS/tokenizer photos --out codes --size 16"
REFUSALS = {
    f"{ENCODE} --ray nowhere": "this is no address of a Ray cluster; expected host:port, auto or nothing",
    f"{ENCODE} --ray 127.0.0.1:99999": "this is no address of a Ray cluster",
    f"{ENCODE} --ray 127.0.0.1:CLOSED": "cannot be reached (Connection refused); give host:port of a running cluster's",
    f"{ENCODE} --ray 127.0.0.1:SILENT": "no Ray cluster answers there within 2 s",
    f"{SAMPLE} --ray --ray-workers 0": "--ray-workers must be at least 1, got 0",
    f"{SAMPLE} --ray --device cuda:1": "--device cuda:1 is one device; with --ray give auto, cpu or cuda",
    f"{SAMPLE} --ray-workers 2": "--ray-workers needs --ray",
    f"{SAMPLE} --devices cpu:2 --ray": "--devices and --ray exclude each other",
    "serve --replicas 2": "--replicas needs --ray",
    "serve --ray --replicas 0": "--replicas must be at least 1, got 0",
    "serve --ray --device cuda:1": "--device cuda:1 is one device; with --ray give auto, cpu or cuda",
    "serve --ray 127.0.0.1:CLOSED --port 0": "--port 0: with the address of a Ray cluster, give the number of a port",
    "serve --ray 127.0.0.1:CLOSED": "cannot be reached (Connection refused); give host:port of a running cluster's",
    "sample --ray": "sample: --ray writes one file; name it with --npz",
}


@needs_ray
@pytest.mark.parametrize("command", REFUSALS)
def test_what_cannot_work_is_one_line_in_finite_time(command, refusal, models, photos, here, monkeypatch):
    from aimamba.cluster import session

    monkeypatch.setattr(session, "_ANSWERS_WITHIN", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        ports = {"SILENT": str(silent.getsockname()[1]), "CLOSED": str(closed.getsockname()[1])}
        closed.close()
        words = command
        for name, value in {**ports, "MODELS": str(models)}.items():
            words = words.replace(name, value)
        assert REFUSALS[command] in refusal(*words.split())
    assert not (here / "codes").exists()


@pytest.mark.parametrize("command", [ENCODE, SAMPLE])
def test_without_ray_the_command_to_type_is_named(command, refusal, models, photos, monkeypatch):
    monkeypatch.setattr("aimamba.cluster.workers.find_spec", lambda _: None)
    line = refusal(*command.replace("MODELS", str(models)).split(), "--ray")
    assert line == "--ray needs Ray Data, which is not installed; type: pip install 'aimamba[ray]'"


def test_without_ray_serve_the_command_to_type_is_named(refusal, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "grpc_reflection" else find(name))
    assert refusal("serve", "--ray") == (
        "--ray needs Ray Serve, which is not installed; type: pip install 'aimamba[ray,serve]'"
    )


@needs_ray
@pytest.mark.parametrize(
    ("nodes", "replicas", "expected"),
    [([2], 2, 1), ([16], 3, 5), ([8, 8], 2, 8), ([8, 8], 3, 4), ([16, 4, 0], 2, 4), ([2], 4, 1)],
)
def test_replicas_share_the_cpus_of_a_machine(nodes, replicas, expected):
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'aimamba[ray]'", exc_type=ImportError)
    from aimamba.serve.replicas import cpus_of_each

    found = [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 1.0}}
    assert cpus_of_each([*found, dead], replicas) == expected


def test_torchrun_and_ray_exclude_each_other(refusal, models, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    line = refusal(*SAMPLE.replace("MODELS", str(models)).split(), "--ray")
    assert line == "--ray has workers of its own, and torchrun started this process; leave one of them out"


@pytest.mark.parametrize(
    ("resources", "device", "workers", "expected"),
    [
        ({"CPU": 4.0}, "auto", None, (4, "cpu")),
        ({"CPU": 16.0, "GPU": 8.0}, "auto", None, (8, "cuda")),
        ({"CPU": 16.0, "GPU": 8.0}, "cpu", 3, (3, "cpu")),
        ({"CPU": 4.0}, "cuda", None, "4 CPUs and 0 GPUs; --device cuda needs a GPU for each"),
        ({}, "auto", None, "0 CPUs and 0 GPUs; --device cpu needs a CPU for each"),
        ({"CPU": 2.0}, "cpu", 3, "--ray-workers 3: the Ray cluster has 2 CPUs and 0 GPUs, one for each"),
    ],
)
def test_workers_follow_what_the_cluster_has(resources, device, workers, expected):
    from aimamba.cluster.workers import choose_workers
    from aimamba.errors import ConfigError

    if isinstance(expected, str):
        with one_line_error(ConfigError, expected):
            choose_workers(resources, device, workers)
    else:
        found = choose_workers(resources, device, workers)
        assert (found.workers, found.device) == expected
