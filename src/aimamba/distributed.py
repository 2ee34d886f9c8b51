"""The processes of one job, as torchrun starts them: what they share, and how one waits for another.

The functions at the end are what a loss needs to see the whole batch, of which each process holds consecutive rows.
Without a process group they return what they are given, and cost nothing.

Shape letters: b rows of this process; W processes.
"""

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in its __all__

from aimamba.config import check
from aimamba.devices import resolve_device
from aimamba.errors import AimambaError, ConfigError, LostError
from aimamba.watch import Watch

Value = TypeVar("Value")

_BACKSTOP = datetime.timedelta(minutes=30)  # of a collective; the watch ends a run long before
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.5  # seconds between two looks
_DIGITS = 9  # of a number of processes, at most
_QUIET = 10.0  # seconds after which a process says that it waits for the others to come
_ENDS_WITHIN = 10.0  # seconds that a process takes to end after an error, whatever it still waits for
_FAREWELL = 5.0  # seconds that the first process waits for the others to end too
_VERDICT = 20.0  # seconds that the others give the first process to report an error that all of them see


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among those of its job.

    Attributes:
        rank: Its number.
        size: Number of processes.
        local_rank: Its number on its machine.
    """

    rank: int
    size: int
    local_rank: int


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return this process's place, as torchrun notes it in the environment; None if it is the only one.

    Raises:
        ConfigError: The numbers there contradict each other.
    """
    numbers = [environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        return None
    if max(map(len, numbers)) > _DIGITS or int(numbers[0]) >= max(1, int(numbers[1])):
        shown = ", ".join(f"{name}={environment[name][:_DIGITS]}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        raise ConfigError(f"no torchrun sets {shown} in the environment; remove them, or start the run with torchrun")
    rank, size, local_rank = map(int, numbers)
    return Place(rank=rank, size=size, local_rank=local_rank) if size > 1 else None


def own_device(name: str, place: Place) -> torch.device:
    """Return the device of a process: with CUDA the one whose number is its local rank, otherwise the CPU.

    Args:
        name: ``auto``, ``cpu`` or ``cuda``.
        place: Where the process stands.

    Raises:
        ConfigError: ``name`` is one device of several, or there are more processes on this machine than devices.
    """
    check(
        name in ("auto", "cpu", "cuda"),
        f"--device {name} is one device, and there are {place.size} processes; give auto, cpu or cuda",
    )
    if name == "cpu" or not torch.cuda.is_available():
        return resolve_device("cuda") if name == "cuda" else torch.device("cpu")
    devices = torch.cuda.device_count()
    check(
        place.local_rank < devices,
        f"there are {devices} CUDA devices on this machine and more processes than that; start torchrun with "
        f"--nproc-per-node {devices}",
    )
    return torch.device("cuda", place.local_rank)


@contextlib.contextmanager
def one_voice(place: Place | None) -> Iterator[None]:
    """Let the first process alone report an error that every process meets, such as a wrong setting.

    The others wait until torchrun ends them, and end by themselves if it does not.
    """
    try:
        yield
    except AimambaError:
        if place is not None and place.rank > 0:
            time.sleep(_VERDICT)
            raise SystemExit(2) from None
        raise


class Team:
    """All processes of a run, seen from one of them; a context that begins and ends their process group.

    Attributes:
        place: Where this process stands.
        device: Its device.
        watch: Ends this process when another one has ended or hangs.
        store: What all processes can read and write.
    """

    def __init__(self, place: Place, device: torch.device, *, timeout: float, advice: str = "") -> None:
        """Prepare; nothing is connected yet.

        Args:
            place: Where this process stands.
            device: Its device.
            timeout: Seconds without a sign of life after which a process counts as lost.
            advice: What to do then; ends the line that is printed.
        """
        self.place, self.device = place, device
        self._timeout, self._advice, self._shared = timeout, advice, 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.place.rank == 0

    def __enter__(self) -> "Team":
        place = self.place
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        alone = threading.Timer(_QUIET, self._say_that_it_waits)
        alone.daemon = True
        alone.start()
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                rank=place.rank,
                world_size=place.size,
                timeout=_BACKSTOP,
            )
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            client = TCPStore(address, port, is_master=False, timeout=_BACKSTOP)
        except (RuntimeError, ValueError, KeyError) as error:  # torch's own errors are of the first two kinds
            first = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"the {place.size} processes cannot reach each other ({type(error).__name__}: {first}); start them "
                "with torchrun"
            ) from error
        finally:
            alone.cancel()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = PrefixStore(f"aimamba/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{attempt}", client)
        self.watch = Watch(self.store, place.rank, place.size, timeout=self._timeout, advice=self._advice)
        self.watch.begin()
        dist.barrier()
        self.watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            try:
                with self.losses_named():
                    self.disband()
            except LostError:
                self.watch.end_process_within(_ENDS_WITHIN)
                raise
            dist.destroy_process_group()
            return
        self.watch.end(f"{kind.__name__ if kind else 'an error'}")
        if self.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            self.watch.wait_for_others(_FAREWELL)  # the store is in this process, and they still read it
        self.watch.end_process_within(_ENDS_WITHIN)  # threads may wait for processes that are gone

    def disband(self) -> None:
        """Wait until all processes are here, and stop watching: from then on each ends when it likes.

        Raises:
            RuntimeError: One of them has ended before; see ``losses_named``.
        """
        self.watch.leave()
        with self.watch.patient():
            dist.barrier()
        self.watch.end()

    def _say_that_it_waits(self) -> None:
        where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        line = f"aimamba: rank {self.place.rank} waits for the other {self.place.size - 1} at {where}"
        print(line, file=sys.stderr, flush=True)

    def new_key(self, kind: str) -> str:
        """Return a key of the store for something that all processes do, each in the same order."""
        self._shared += 1
        return f"{kind}/{self._shared}"

    def shared(self, make: Callable[[], Value]) -> Value:
        """Call ``make`` in the first process, however long that takes, and return its result in all of them.

        Args:
            make: Returns what JSON can hold; NaN and infinity are kept.

        Raises:
            SystemExit: ``make`` has failed; the first process raises its error.
        """
        key = self.new_key("shared")
        with self.watch.patient():
            if self.is_first:
                try:
                    value = make()
                except BaseException:
                    self.store.set(key, json.dumps({"failed": True}))
                    raise
                self.store.set(key, json.dumps({"value": value}))
                return value
            self.wait(lambda: bool(self.store.check([key])))
        answer = json.loads(self.store.get(key))
        if "failed" in answer:
            raise SystemExit(2)
        return answer["value"]

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """Call ``make`` in every process: in the first, then in one of every other machine, then in the rest.

        So what the first call prepares on disk is there for the others.

        Raises:
            SystemExit: ``make`` has failed in a process before this one, which raises its error.
        """
        key = self.new_key("turns")
        turn = 0 if self.is_first else 1 if self.place.local_rank == 0 else 2
        with self.watch.patient():
            self.store.add(f"{key}/{turn}", 1)
            self._count_to(f"{key}/here", self.place.size)
            for before in range(turn):
                members = int(self.store.add(f"{key}/{before}", 0))
                self.wait(partial(self._is, f"{key}/{before}/done", members, f"{key}/failed"))
            try:
                value = make()
            except BaseException:
                self.store.set(f"{key}/failed", "")
                raise
            self._count_to(f"{key}/{turn}/done", 0)
        return value

    def _count_to(self, key: str, number: int) -> None:
        """Count this process, and wait until the count is ``number``; 0 does not wait."""
        self.store.add(key, 1)
        if number:
            self.wait(lambda: self._is(key, number))

    def _is(self, key: str, number: int, failed: str = "") -> bool:
        if failed and self.store.check([failed]):
            raise SystemExit(2)
        return int(self.store.add(key, 0)) == number

    def wait(self, until: Callable[[], bool], *, longest: float = _LONGEST_WAIT) -> None:
        """Wait until ``until`` returns True; signals are answered meanwhile.

        Args:
            until: Asked again and again.
            longest: Seconds between two times, at most.
        """
        pause = _FIRST_WAIT
        while not until():
            time.sleep(pause)
            pause = min(2 * pause, longest)

    @contextlib.contextmanager
    def losses_named(self) -> Iterator[None]:
        """Turn the failure of an exchange with other processes into one line that names those that are gone.

        Raises:
            LostError: A process has ended or hangs.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_exchange(error):
                raise
            raise LostError(self.watch.blame()) from error


def _is_exchange(error: RuntimeError) -> bool:
    """Return whether an error is one of an exchange between processes."""
    if isinstance(error, dist.DistError):
        return True
    signs = ("gloo", "peer", "NCCL", "Broken pipe", "Socket", "ProcessGroup")
    return any(sign in str(error) for sign in signs)


def size() -> int:
    """Return the number of processes, W; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 if it is the only one."""
    return dist.get_rank() if size() > 1 else 0


def mean(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, without a gradient."""
    return tensor if size() == 1 else total(tensor) / size()


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without a gradient."""
    if size() == 1:
        return tensor
    found = tensor.detach().clone()
    dist.all_reduce(found)
    return found


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, (W b, ...), in the order of the whole batch, without a gradient."""
    if size() == 1:
        return rows
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def uniform(shape: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
    """Return uniform random numbers in [0, 1) for the rows of this process.

    Every process draws those of the whole batch and takes its own, so they depend on the place in the batch and not on
    the number of processes.

    Args:
        shape: Of the rows of this process, (b, ...).
        rng: The same in every process.
        device: Of ``rng``.
    """
    if size() == 1:
        return torch.rand(shape, generator=rng, device=device)
    count, first = shape[0], rank() * shape[0]
    whole = torch.rand((size() * count, *shape[1:]), generator=rng, device=device)
    return whole[first : first + count].clone()


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; its gradient is the sum of theirs."""
    return tensor if size() == 1 else _Summed.apply(tensor)  # type: ignore[no-untyped-call]


def averaged(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, with a gradient; see ``summed``."""
    return tensor if size() == 1 else summed(tensor) / size()


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: FunctionCtx, tensor: Tensor) -> Any:
        return total(tensor)

    @staticmethod
    def backward(_ctx: FunctionCtx, gradient: Tensor) -> Any:
        return total(gradient)
