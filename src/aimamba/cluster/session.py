"""Join a Ray cluster, or start a Ray on this machine, and leave or end it in every case."""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from aimamba.config import check
from aimamba.errors import ConfigError
from aimamba.files import remove_tree

LOCAL = "local"
"""The address of a Ray that is started on this machine and ends with the command."""

_OPENS_WITHIN, _ANSWERS_WITHIN = 10.0, 60.0  # seconds
_STORE = 1 << 29  # bytes of a local object store; what is larger goes to the disk
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # statistics of its use that Ray sends to its makers
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"


@contextmanager
def session(address: str, show: Callable[..., None] | None = None) -> Iterator[Mapping[str, float]]:
    """Join a Ray cluster, or start a Ray here, and leave or end it in every case; yield the resources that it has.

    If this process is connected to a Ray already, that one is used as it is, and stays.

    Args:
        address: As for ``connected``.
        show: Is given what workers print, as Ray has it; by default only their loss is told.

    Raises:
        ConfigError: No cluster answers.
    """
    is_there = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    with ExitStack() as stack:
        stack.enter_context(_environment())
        if address != LOCAL:
            _check_answers(address)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"ray(\.|$)")  # of its own use of what it has deprecated
        import ray

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        if hasattr(ray._private.worker, "print_to_stdstream"):  # not public; without it Ray says more
            ray._private.worker.print_to_stdstream = show or _tell_of_losses
        if not is_there:
            stack.enter_context(_local(show) if address == LOCAL else _joined(address, show))
        yield ray.cluster_resources()  # type: ignore[no-untyped-call]


@contextmanager
def _environment() -> Iterator[None]:
    """Set what Ray reads from the environment, and let workers on this machine find the package where it is here."""
    package = str(Path(__file__).parents[2])
    given = _QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _local(show: object) -> Iterator[None]:
    """Start a Ray on this machine, with its files in a folder that is removed at the end."""
    import ray

    short = Path(os.sep, "tmp")  # names of sockets are limited to about a hundred characters
    folder = tempfile.mkdtemp(prefix="aim-", dir=short if short.is_dir() else None)
    try:
        _begin(LOCAL, show, object_store_memory=_STORE, include_dashboard=False, _temp_dir=folder)
        yield
    finally:
        ray.shutdown()
        remove_tree(Path(folder))


@contextmanager
def _joined(address: str, show: object) -> Iterator[None]:
    """Join a cluster that answers."""
    import ray

    try:
        _begin(address, show)
        yield
    finally:
        ray.shutdown()


def _begin(address: str, show: object, **options: Any) -> None:
    """Call ``ray.init``, without the line in which Ray says that its messages are turned off."""
    import ray

    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        ray.init(address, log_to_driver=show is not None, logging_level=logging.CRITICAL, **options)
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _check_answers(address: str) -> None:
    """Check that a cluster answers: Ray itself would wait for it for ever.

    Raises:
        ConfigError: None does; or it is another version of Ray or of Python, or this machine is no part of it.
    """
    remedy = "give host:port of a running cluster's head, or leave the address out for a Ray of this machine"
    if address != "auto":
        host, _, port = address.rpartition(":")
        known = host and "/" not in host and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 1 << 16
        check(bool(known), f"--ray {address}: this is no address of a Ray cluster; expected host:port, auto or nothing")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _OPENS_WITHIN).close()
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--ray {address}: cannot be reached ({reason}); {remedy}") from error
    try:
        command = [sys.executable, "-c", _JOIN, address]
        joined = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_ANSWERS_WITHIN)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"--ray {address}: no Ray cluster answers there within {_ANSWERS_WITHIN:.0f} s; {remedy}"
        ) from error
    if joined.returncode:
        said = [line for line in joined.stderr.splitlines() if line and not line.startswith((" ", "["))]
        raise ConfigError(
            f"--ray {address}: Ray cannot join it ({said[-1][:300] if said else 'it ended'}); {remedy}; a cluster that "
            "checks tokens is joined with RAY_AUTH_MODE=token in the environment"
        )


def _tell_of_losses(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
    """Print one line where Ray prints a page."""
    if any("died or was killed" in str(line) for line in data.get("lines", ())):
        print("a worker was lost; Ray starts another one and repeats what it had begun", file=sys.stderr)
