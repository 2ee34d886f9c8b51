"""Workers of a Ray cluster that hold a model: they compute units of work, and this process takes the results.

Ray Data hands the units out, lets finished results wait in bounded memory only, and repeats the units of a worker that
was lost. A result depends on its unit alone, and this process takes each once: so a loss changes nothing and doubles
nothing.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from aimamba import errors
from aimamba.cluster.session import LOCAL, session
from aimamba.config import check
from aimamba.errors import AimambaError, ConfigError, LostError, counted

_SILENT = 10.0  # seconds after which waiting for a worker is told
_REPEATS = 3  # of a unit whose worker was lost
_RESTARTS = 100  # of a worker
_AHEAD = 2  # units that wait at a worker
_ERROR = "error"  # the column of an error

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
