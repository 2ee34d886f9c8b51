"""The same app in several processes, behind the proxy of Ray Serve.

Each replica has a pipeline and a scheduler of its own; Ray sends a request to one that has few, and starts a replica
again that was lost. ``gate.py`` stands in the proxy and makes an error of it that a client can act on.
"""

import logging
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
import torch
from prometheus_client import Metric
from ray import serve
from ray.exceptions import RayError
from starlette.types import ASGIApp

from aimamba import errors
from aimamba.cluster.session import LOCAL
from aimamba.cluster.workers import Cluster
from aimamba.config import check
from aimamba.errors import ConfigError, LostError
from aimamba.pipeline import Pipeline
from aimamba.serve.app import make_app
from aimamba.serve.config import ServeConfig
from aimamba.serve.gate import Named, environment
from aimamba.serve.metrics import Metrics, together
from aimamba.serve.service import Service

logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
_APP, _DEPLOYMENT = "aimamba", "replica"
_ONGOING = 100_000  # requests of a replica, which has limits of its own
_HEALTH_EVERY = 2.0  # seconds
_NUMBERS_WITHIN = 5.0  # seconds in which the replicas tell their numbers
_LOOK_EVERY = 0.25  # seconds
_AFTER_GRACE = 5.0  # seconds in which replicas end that have nothing to do any more


class Replica:
    """One process of the server, as Ray Serve starts it."""

    def __init__(
        self,
        load: Callable[[], Pipeline],
        name: str,
        config: ServeConfig,
        tokenizer: str | None,
        threads: int | None,
        folder: str,
    ) -> None:
        with suppress(OSError):
            os.chdir(folder)  # relative paths are those of the command
        if threads is not None:
            torch.set_num_threads(threads)
        self._service = Service(load(), name, config, tokenizer)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._metrics = Metrics(self._service)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what answers."""
        return Named(make_app(self._service, self._metrics, self._everywhere), self._id)

    def check_health(self) -> None:
        """Tell Ray whether this replica can go on; if not, it starts another one."""
        if not self._service.alive:
            raise RuntimeError("the scheduler has ended")

    def drain(self) -> None:
        """Take no more requests, and finish those that are there."""
        self._service.drain()

    def numbers(self) -> tuple[str, list[Metric]]:
        """Return the name of this replica and its numbers."""
        return self._id, list(self._metrics.registry.collect())

    async def _everywhere(self) -> Iterable[Metric]:
        handle = serve.get_deployment_handle(_DEPLOYMENT, _APP)
        answers = handle.broadcast("numbers")
        found = await answers.results_async(timeout_s=_NUMBERS_WITHIN, return_exceptions=True)
        return together(dict(each for each in found if not isinstance(each, BaseException)))


def serve_replicas(
    load: Callable[[], Pipeline],
    name: str,
    config: ServeConfig,
    *,
    tokenizer: str | None,
    address: str,
    host: str,
    port: int,
    cluster: Cluster,
    begun: Callable[[], object],
    lost: Callable[[], object],
) -> None:
    """Serve with several processes until a signal comes, then finish what is there; call it within a session of Ray.

    Args:
        load: Returns the pipeline; it is sent to the replicas.
        name: Name of the model.
        config: Limits; those of the scheduler are for each replica.
        tokenizer: Name of the tokenizer, if it was given separately.
        address: Of Ray, as for ``aimamba.cluster.session.session``.
        host: Where the proxy listens.
        port: The same.
        cluster: Number and device of the replicas.
        begun: Called when requests are taken.
        lost: Called when a replica was lost.

    Raises:
        ConfigError: The cluster has a Ray Serve already, or not enough that is free, or the port is taken.
        AimambaError: A replica met it when it began.
        LostError: Ray has ended.
    """
    with _errors_named(address, port), _Signals() as signals:
        check(
            not serve.status().applications and not serve.status().proxies,
            f"--ray {address}: there is a Ray Serve in this cluster already, whose port cannot be changed; end it with "
            "'serve shutdown', or use another cluster",
        )
        replicas, gpus = cluster.workers, int(cluster.device == "cuda")
        cpus = 1 if gpus else cpus_of_each(ray.nodes(), replicas)  # type: ignore[no-untyped-call]
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        check(
            free.get("CPU", 0) >= replicas * cpus and free.get("GPU", 0) >= replicas * gpus,
            f"--replicas {replicas}: other work has the CPUs or GPUs of the Ray cluster; wait for it, or give fewer",
        )
        if address != LOCAL:
            cluster.call(bool)  # checks the version of the workers
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config=quiet,
                controller_options={"runtime_env": {"env_vars": environment(config.idle_seconds)}},
            )
            threads = None if os.environ.get("OMP_NUM_THREADS") else cpus
            deployed = serve.deployment(
                name=_DEPLOYMENT,
                num_replicas=replicas,
                ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
                max_ongoing_requests=_ONGOING,
                graceful_shutdown_timeout_s=config.grace_seconds + _AFTER_GRACE,
                graceful_shutdown_wait_loop_s=_LOOK_EVERY,
                health_check_period_s=_HEALTH_EVERY,
                max_constructor_retry_count=1,  # only of the first ones; one that is lost later is always started again
                logging_config=quiet,
            )(serve.ingress()(Replica))
            with _failure_named():
                handle = serve.run(deployed.bind(load, name, config, tokenizer, threads, os.getcwd()), name=_APP)
            begun()
            signals.serving = True
            _wait(signals, replicas, lost)
            handle.broadcast("drain").results(return_exceptions=True)
            serve.delete(_APP, _blocking=False)
            end = time.monotonic() + config.grace_seconds + _AFTER_GRACE
            while _APP in serve.status().applications and time.monotonic() < end:
                time.sleep(_LOOK_EVERY)
        finally:
            with suppress(RayError):
                serve.shutdown()  # type: ignore[no-untyped-call]


def cpus_of_each(nodes: Sequence[Mapping[str, Any]], replicas: int) -> int:
    """Return how many CPUs a replica may have so that there is room for all, on nodes as ``ray.nodes`` has them."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    usable = [each for each in cpus if each] or [1]
    return max(1, min(usable) // math.ceil(replicas / len(usable)))


def _wait(signals: "_Signals", replicas: int, lost: Callable[[], object]) -> None:
    """Wait for a signal, and say when a replica is lost."""
    known = replicas
    while not signals.asked:
        time.sleep(_LOOK_EVERY)
        app = serve.status().applications.get(_APP)
        if app is None:
            raise LostError("the server was deleted from the Ray cluster by another program")
        states: Any = app.deployments[_DEPLOYMENT].replica_states
        running = states.get("RUNNING", 0)
        if running < known:
            lost()
        known = running


class _Signals:
    """While requests are taken, the first signal asks for an end in order. Every other one ends the command at once.

    Attributes:
        serving: Whether requests are taken.
        asked: Whether a signal has come since.
    """

    def __init__(self) -> None:
        self.serving = self.asked = False

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.asked or not self.serving:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _errors_named(address: str, port: int) -> Iterator[None]:
    """Turn what Ray says of a replica or of its proxy into one line."""
    try:
        yield
    except RayError as error:
        if "Failed to bind" in str(error):
            raise ConfigError(f"port {port} is taken by another program; give another --port") from error
        said = [line for line in str(error).splitlines() if line.strip()][-1:] or ["it does not answer"]
        raise LostError(f"Ray cannot go on ({type(error).__name__}: {said[0].strip()[:300]})") from error


@contextmanager
def _failure_named() -> Iterator[None]:
    """Raise what a replica could not begin for, in place of what Ray says of it."""
    try:
        yield
    except RuntimeError:
        said = serve.status().applications[_APP].deployments[_DEPLOYMENT].message  # with the replica's traceback
        found = re.findall(r"aimamba\.errors\.(\w+): (.+)", said)
        if not found:
            raise LostError(f"the replicas do not start: {said.strip().splitlines()[-1][:300]}") from None
        kind, message = found[-1]
        raise getattr(errors, kind)(message) from None
