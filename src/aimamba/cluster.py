"""Work that a Ray cluster does: workers that hold a model compute units of it, and this process takes the results.

Ray Data hands the units out, lets finished results wait in bounded memory only, and repeats the units of a worker that
was lost. A result depends on its unit alone, and this process takes each once: so a loss changes nothing and doubles
nothing. Ray is imported when a cluster is asked for, and not before.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from aimamba import errors
from aimamba.config import check
from aimamba.errors import AimambaError, ConfigError, LostError, counted
from aimamba.files import remove_tree

LOCAL = "local"
"""The address of a Ray that is started on this machine and ends with the command."""

_OPENS_WITHIN, _ANSWERS_WITHIN = 10.0, 60.0  # seconds
_SILENT = 10.0  # seconds after which waiting for a worker is told
_STORE = 1 << 29  # bytes of a local object store; what is larger goes to the disk
_REPEATS = 3  # of a unit whose worker was lost
_RESTARTS = 100  # of a worker
_AHEAD = 2  # units that wait at a worker
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # statistics of its use that Ray sends to its makers
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ERROR = "error"  # the column of an error
_JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"

Unit = TypeVar("Unit")
Unit_contra = TypeVar("Unit_contra", contravariant=True)
Value = TypeVar("Value")
Results = tuple[np.ndarray, ...]


@runtime_checkable
class Work(Protocol[Unit_contra]):
    """What workers do. It holds the model and is sent to them."""

    def __call__(self, unit: Unit_contra) -> Results:
        """Return the result of a unit, which depends on the unit alone."""

    def to(self, device: torch.device) -> "Work[Unit_contra]":
        """Return the same with the model on a device."""


class Cluster:
    """A Ray that this process is connected to.

    Attributes:
        workers: Number of workers.
        device: Where they compute: ``cuda``, each on a GPU of its own, or ``cpu``.
    """

    def __init__(self, workers: int, device: str) -> None:
        self.workers, self.device = workers, device
        self._needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(device == "cuda")}

    def call(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Call a function in a worker, and return what it returns; if all of them are busy for long, say so.

        Raises:
            AimambaError: The function raises it.
            ConfigError: The worker has no aimamba, or another version.
        """
        import ray

        with _errors_named():
            remote: Any = ray.remote(max_retries=_REPEATS, **self._needs)(_called)
            answer = remote.remote(function, arguments)
            if not ray.wait([answer], timeout=_SILENT)[0]:
                kind = "GPU" if self._needs["num_gpus"] else "CPU"
                print(f"aimamba: waits for a free {kind} of the Ray cluster", file=sys.stderr, flush=True)
            version, value = ray.get(answer)
        check(
            version == _version(),
            f"the workers of the Ray cluster have aimamba {version}, and here it is {_version()}; install the "
            "same on all machines",
        )
        return value

    def results(
        self, units: Sequence[Unit], work: Work[Unit], *, in_order: bool = False
    ) -> Iterator[tuple[Unit, Results]]:
        """Yield every unit with its result, each once.

        Args:
            units: What is to be done.
            work: What is done with each; it is sent with the model on the CPU.
            in_order: Yield them in the order of ``units`` instead of as they are finished.

        Raises:
            AimambaError: ``work`` raises it.
            LostError: The workers of a unit were lost one after the other, or the cluster was.
        """
        import ray
        from ray.data import ActorPoolStrategy, DataContext, from_items

        if not units:
            return
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = in_order
        size = min(self.workers, len(units))
        with _errors_named():
            sent = ray.put(work)
            todo = from_items(
                [{"number": number, "unit": unit} for number, unit in enumerate(units)], override_num_blocks=len(units)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # ray_remote_args_fn goes with Ray 2.64, and nothing takes its place
                done = todo.map_batches(
                    _Worker,
                    batch_size=1,
                    compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=_AHEAD),
                    fn_constructor_args=([sent], self.device, os.getcwd()),
                    ray_remote_args_fn=_repeats,
                    **self._needs,
                )
            for found in done.iter_batches(batch_size=None):
                if _ERROR in found:
                    _raise(*found[_ERROR][0])
                parts = [np.array(found[f"part{number}"][0]) for number in range(len(found) - 1)]
                yield units[int(found["number"][0])], tuple(parts)


def _repeats() -> dict[str, Any]:
    return {"max_restarts": _RESTARTS, "max_task_retries": _REPEATS}


class _Worker:
    """Holds the model in a process of Ray."""

    def __init__(self, sent: list[Any], device: str, folder: str) -> None:
        import ray

        with suppress(OSError):
            os.chdir(folder)  # relative paths are those of the command
        self._work: Work[Any] = ray.get(sent[0])
        self._device: torch.device | None = torch.device(device)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if self._device is not None:
                self._work, self._device = self._work.to(self._device), None
            parts = self._work(batch["unit"][0])
        except Exception as error:
            return {"number": batch["number"], _ERROR: np.array([_described_error(error)])}
        return {"number": batch["number"], **{f"part{number}": part[None] for number, part in enumerate(parts)}}


def _called(function: Callable[..., Value], arguments: Sequence[Any]) -> tuple[str, Value]:
    return _version(), function(*arguments)


def _version() -> str:
    """Return the version of the package, which is above this module."""
    return str(sys.modules["aimamba"].__version__)


def _described_error(error: Exception) -> tuple[str, str]:
    """Return kind and message of an error that can be fixed; Ray drops the cause of those that it sends itself."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if isinstance(error, AimambaError):
        return kinds[0], str(error)
    if "OutOfMemoryError" in kinds or "MemoryError" in kinds:
        return "LostError", "a worker ran out of memory; give fewer --ray-workers or a smaller --batch-size"
    raise error


def _raise(kind: str, message: str) -> NoReturn:
    raise getattr(errors, str(kind))(str(message))


@contextmanager
def connected(address: str, *, device: str = "auto", workers: int | None = None) -> Iterator[Cluster]:
    """Join a Ray cluster, or start a Ray here, and leave or end it in every case.

    Args:
        address: ``local``; ``auto`` for the cluster that this machine belongs to; or ``host:port`` of its head.
        device: Of the workers: ``cpu``, ``cuda``, or ``auto``, which takes GPUs if the cluster has some.
        workers: Their number; by default one for each GPU or each CPU.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, it has no such devices, or a setting is wrong.
    """
    check(workers is None or workers >= 1, f"--ray-workers must be at least 1, got {workers}")
    check(device in ("auto", "cpu", "cuda"), f"--device {device} is one device; with --ray give auto, cpu or cuda")
    check(
        all(find_spec(name) is not None for name in ("ray", "pyarrow", "pandas")),
        "--ray needs Ray Data, which is not installed; type: pip install 'aimamba[ray]'",
    )
    with session(address) as resources:
        from ray import data

        logging.getLogger(data.__name__).setLevel(logging.CRITICAL)  # its import has set another one
        cluster = choose_workers(resources, device, workers)
        if address != LOCAL:
            cluster.call(bool)  # checks the version of the workers
        yield cluster


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
    package = str(Path(__file__).parents[1])
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


def choose_workers(
    resources: Mapping[str, float], device: str, workers: int | None, option: str = "--ray-workers"
) -> Cluster:
    """Choose the workers by what a cluster has; see ``connected``. ``option`` is what gave their number.

    Raises:
        ConfigError: It has not enough.
    """
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    there = min(gpus, cpus) if device == "cuda" else cpus
    has = f"the Ray cluster has {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
    check(there >= 1, f"{has}; --device {device} needs a {'GPU' if device == 'cuda' else 'CPU'} for each")
    check(workers is None or workers <= there, f"{option} {workers}: {has}, one for each")
    return Cluster(there if workers is None else workers, device)


@contextmanager
def _errors_named() -> Iterator[None]:
    """Turn Ray's errors into the one that a worker met, or into one line.

    Raises:
        AimambaError: A worker met it.
        ConfigError: Workers have no aimamba.
        LostError: Workers or the cluster were lost.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, AimambaError):
            raise error.cause from None
        if isinstance(error.cause, ModuleNotFoundError | AttributeError):
            raise ConfigError(
                f"the workers of the Ray cluster have no aimamba or an older one ({error.cause}); install the same on "
                "all machines"
            ) from None
        raise
    except RayError as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise LostError(f"Ray lost its workers again and again ({type(error).__name__}: {first})") from error


def _tell_of_losses(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
    """Print one line where Ray prints a page."""
    if any("died or was killed" in str(line) for line in data.get("lines", ())):
        print("a worker was lost; Ray starts another one and repeats what it had begun", file=sys.stderr)
