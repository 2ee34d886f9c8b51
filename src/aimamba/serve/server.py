"""The process: a socket, a server around an app, and signals that end it in order."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from aimamba.errors import ConfigError
from aimamba.serve.config import ServeConfig
from aimamba.serve.protocol import make_protocol

_BACKLOG = 2048
_AFTER_GRACE = 2.0  # seconds in which requests that were given up are told so
_KEEP_ALIVE = 30  # seconds


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: The port is taken or not permitted, or there is no such address here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: there is no such address; give 127.0.0.1, or one of this machine") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is taken by another program; give another --port") from error
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}; give another --host or --port") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL of a socket that listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, listener: socket.socket, config: ServeConfig, drain: Callable[[], object]) -> None:
    """Serve until a signal comes, then finish what is there.

    Args:
        app: What answers.
        listener: Where requests come from.
        config: Times.
        drain: Called by the first signal: take no more requests.
    """
    settings = uvicorn.Config(
        app,
        http=make_protocol(config.idle_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(config.grace_seconds + _AFTER_GRACE),
    )
    _Server(settings, drain).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server for which a signal is an order to end in order, not a failure: the process then exits with 0."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], object]) -> None:
        super().__init__(config)
        self._drain = drain

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM meanwhile; a second one ends the server at once."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End in order, or at once if asked again."""
        self.force_exit = self.should_exit
        self.should_exit = True
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)
