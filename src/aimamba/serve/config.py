"""Settings of the server."""

import math
from dataclasses import dataclass, field

from aimamba.config import check
from aimamba.generation.scheduler import SchedulerConfig

_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits of the server, and who may use it.

    Attributes:
        scheduler: How many images are generated together, and how many may wait.
        images_per_request: Images that one request may ask for.
        upload_bytes: Bytes of a body with an uploaded image; other bodies have at most 64 KiB.
        upload_pixels: Pixels of an uploaded image.
        request_seconds: Time for a request, waiting included.
        idle_seconds: Time in which a client has to send its request, or take a part of the answer.
        grace_seconds: Time for the requests that are there when the server is asked to stop.
        api_keys: Keys, one of which a request must give; none: everybody may use the server.
        hosts: Names by which the server may be called in the header Host, without a port; none: by any. They keep a web
            page whose name was made to point at this machine (DNS rebinding) from using the server.
        origins: Web pages that may use the server from a browser (CORS), or ``*``.
    """

    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    images_per_request: int = 64
    upload_bytes: int = 16 << 20
    upload_pixels: int = 1 << 25
    request_seconds: float = 300.0
    idle_seconds: float = 30.0
    grace_seconds: float = 30.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("images_per_request", "upload_bytes", "upload_pixels"):
            check(getattr(self, name) >= 1, f"{_words(name)} must be 1 or more, got {getattr(self, name)}")
        for name in ("request_seconds", "idle_seconds", "grace_seconds"):
            value = getattr(self, name)
            lowest = name == "grace_seconds"
            check(not value > _DAY, f"{_words(name)} must be at most a day, {_DAY:.0f}, got {value}")
            check(
                math.isfinite(value) and (value >= 0 if lowest else value > 0),
                f"{_words(name)} must be {'0 or more' if lowest else 'above 0'}, got {value}",
            )
        check(
            self.images_per_request <= self.scheduler.waiting,
            f"images per request ({self.images_per_request}) must not be more than the images that may wait "
            f"({self.scheduler.waiting})",
        )
        for key in self.api_keys:
            check(
                len(key) >= 16 and key.isascii() and key.isprintable() and " " not in key,
                "an API key must have at least 16 visible ASCII characters without spaces",
            )


def _words(name: str) -> str:
    return name.replace("_", " ")
