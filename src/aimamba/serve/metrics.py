"""Numbers for Prometheus."""

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aimamba.generation.scheduler import Scheduler
from aimamba.serve.service import Service

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GONE = 499  # as nginx names a client that has left before the answer
_UNKNOWN = "unknown"  # in place of a path that is no route, of which clients could invent any number

Everywhere = Callable[[], Awaitable[Iterable[Metric]]]
"""Returns the numbers of all replicas."""


class Metrics:
    """Numbers of requests, how long they take, and what the scheduler counts.

    Attributes:
        registry: Everything, for ``/metrics``.
    """

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        names = ("route", "status")
        self._requests = Counter("aimamba_requests", "Requests answered", names, registry=self.registry)
        self._seconds = Histogram(
            "aimamba_request_seconds", "Duration of requests", ("route",), registry=self.registry, buckets=_SECONDS
        )
        self._wait = Histogram(
            "aimamba_queue_seconds",
            "Time until the first image of a request joins the batch",
            registry=self.registry,
            buckets=_SECONDS,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_OfScheduler(service.scheduler))
        service.on_wait = self._wait.observe

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Found(CollectorRegistry):
    """Numbers that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._found = metrics

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._found


class Counted:
    """ASGI middleware that counts requests by route and status."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, known: Collection[str]) -> None:
        """Wrap an app.

        Args:
            app: What requests are handed to.
            metrics: Where they are counted.
            known: Paths that are named also where a request did not reach its route.
        """
        self._app, self._metrics, self._known = app, metrics, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), _GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self._known else _UNKNOWN
            route = getattr(scope.get("route"), "path", path)
            self._metrics.count(str(route), status, time.monotonic() - started)


class _OfScheduler:
    """Reads the scheduler when Prometheus asks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        """Return the numbers as they are now."""
        scheduler = self._scheduler
        for name, text, value in (
            ("aimamba_images", "Images finished", scheduler.images),
            ("aimamba_tokens", "Tokens chosen", scheduler.tokens),
            ("aimamba_steps", "Decoding steps computed", scheduler.steps),
            ("aimamba_cancelled_images", "Images given up because their client left", scheduler.cancelled),
        ):
            yield CounterMetricFamily(name, text, value=value)
        for name, text, value in (
            ("aimamba_running_images", "Images in the batch", scheduler.running),
            ("aimamba_running_rows", "Rows in the batch: a guided image has two", scheduler.rows),
            ("aimamba_waiting_images", "Images that wait for a place", scheduler.waiting),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def together(numbers: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """Return the numbers of all replicas, with a label ``replica`` for each."""
    found: dict[str, Metric] = {}
    for replica, metrics in sorted(numbers.items()):
        for metric in metrics:
            into = found.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            into.samples += [each._replace(labels={**each.labels, "replica": replica}) for each in metric.samples]
    return list(found.values())
