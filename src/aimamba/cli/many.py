"""A command on several devices: its processes, started by torchrun or by ``--devices``, and how they end.

Only the first process prints and writes; an error that all of them meet is printed once.
"""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from aimamba.cli.arguments import Parser
from aimamba.cores import usable_cores
from aimamba.errors import ConfigError, LostError
from aimamba.signals import STOPPING, handle

if TYPE_CHECKING:
    from aimamba.sharing import Sharing

_TIMEOUT = 25.0  # seconds without a sign of life after which a process counts as lost
_LAUNCHED = "AIMAMBA_LAUNCHED"  # set for processes that --devices has started
_ALWAYS = 8  # processes on the CPU that are started anywhere
_ON_A_CORE = 2  # on a machine with more cores


def add_devices(parser: Parser) -> None:
    """Add ``--devices``: the devices of this machine to use at the same time."""
    parser.add_argument(
        "--devices",
        metavar="LIST",
        help="several devices of this machine, a process for each: all, GPUs as in 0,2, or processes as in cpu:2; "
        "torchrun does it on several machines (docs/scale.md)",
    )


def add_ray(parser: Parser) -> None:
    """Add ``--ray`` and ``--ray-workers``: a Ray cluster that does the work."""
    add_ray_address(parser)
    parser.add_argument(
        "--ray-workers", type=int, metavar="N", help="number of workers (default: one for each GPU, or each CPU)"
    )


def add_ray_address(parser: Parser) -> None:
    """Add ``--ray``."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="let workers of Ray do it: of the cluster at host:port, auto for the one that this machine belongs to, "
        "none for this machine alone; needs aimamba[ray] (docs/scale.md)",
    )


def started(arguments: argparse.Namespace) -> bool:
    """Run the command in a process for each of ``--devices``, if it is given; return whether this was done.

    Raises:
        ConfigError: There are no such devices, or torchrun has started this process.
        LostError: One of the processes was killed.
        SystemExit: One of them has failed, and has said why.
        KeyboardInterrupt: A signal has ended them.
    """
    if arguments.devices is None:
        return False
    if getattr(arguments, "ray", None) is not None:
        raise ConfigError("--devices and --ray exclude each other; give one of them")
    if arguments.device != "auto":
        raise ConfigError(f"--devices and --device {arguments.device} exclude each other; give one of them")
    if os.environ.get("RANK", "").isdecimal():
        raise ConfigError("--devices starts processes itself, and torchrun has started this one; leave --devices out")
    count, device, visible = parse_devices(arguments.devices)
    command = ["-m", "aimamba", *_without_devices(arguments.typed), "--device", device]
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    threads = str(max(1, usable_cores() // count))
    os.environ.update({_LAUNCHED: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)})
    _launch(count, command)
    return True


def parse_devices(text: str) -> tuple[int, str, str | None]:
    """Return for ``--devices`` the number of processes, their ``--device``, and CUDA_VISIBLE_DEVICES or None.

    Raises:
        ConfigError: There are no such devices.
    """
    import torch

    cpu, _, number = text.partition(":")
    if cpu == "cpu" and number.isascii() and number.isdecimal() and int(number[:9]) >= 1:
        most = max(_ALWAYS, _ON_A_CORE * usable_cores())
        if int(number[:9]) > most:
            raise ConfigError(f"--devices {text[:20]}: at most {most} processes on the CPU of this machine")
        return int(number), "cpu", None
    there = torch.cuda.device_count()
    listed = f"this machine has {there} CUDA devices" + (f", 0 to {there - 1}" if there else "")
    if text == "all":
        if not there:
            raise ConfigError(f"--devices all: {listed}; cpu:2 starts two processes on the CPU")
        return there, "cuda", None
    numbers = text.split(",")
    if not all(each.isascii() and each.isdecimal() for each in numbers) or len(set(numbers)) < len(numbers):
        raise ConfigError(f"--devices {text}: expected all, different numbers as in 0,2, or cpu:2")
    if wrong := [each for each in numbers if len(each) > len(str(there)) or int(each) >= there]:
        raise ConfigError(f"--devices {text}: there is no device {wrong[0][:20]}; {listed}")
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = names or [str(number) for number in range(there)]
    return len(numbers), "cuda", ",".join(names[int(each)] for each in numbers)


@contextmanager
def crew(arguments: argparse.Namespace, advice: str) -> Iterator["Sharing"]:
    """Yield the processes that torchrun or ``--devices`` has started for this command; one process is alone.

    ``arguments.device`` becomes the device of this process. Errors inside are printed by the first process that meets
    them; where all processes check the same settings, let them do it in ``one_voice``.

    Args:
        arguments: Those of the command.
        advice: What to do when a process is lost; the end of the line that is printed.
    """
    from aimamba.config import check
    from aimamba.distributed import Team, find_place, one_voice, own_device
    from aimamba.sharing import ALONE, Sharing

    place = find_place()
    if getattr(arguments, "ray", None) is not None:
        from aimamba.cluster.workers import connected

        with one_voice(place):
            check(
                place is None, "--ray has workers of its own, and torchrun started this process; leave one of them out"
            )
        with connected(arguments.ray, device=arguments.device, workers=arguments.ray_workers) as cluster:
            arguments.device = "cpu"  # of this process, which computes nothing
            yield Sharing(cluster=cluster)
        return
    check(getattr(arguments, "ray_workers", None) is None, "--ray-workers needs --ray")
    if place is None:
        yield ALONE
        return
    with one_voice(place):
        device = own_device(arguments.device, place)
    arguments.device = str(device)
    if place.rank > 0:
        warnings.simplefilter("ignore")  # the first process shows them
    with ExitStack() as stack:
        stack.enter_context(_stopped_by_signals(quiet=place.rank > 0))
        yield Sharing(stack.enter_context(Team(place, device, timeout=_TIMEOUT, advice=advice)))


@contextmanager
def _stopped_by_signals(*, quiet: bool) -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop a process as Ctrl-C does, the first one with a message, and ignore what follows.

    One that ``--devices`` has started leaves the message to the process that has started it, unless it is Ctrl-C.
    """
    received = 0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    handle(stop)
    try:
        yield
    except BaseException as error:
        if not received:
            raise
        if quiet or (received != signal.SIGINT and _LAUNCHED in os.environ):
            raise SystemExit(128 + received) from None
        message = str(error) if isinstance(error, KeyboardInterrupt) else ""
        stopped = KeyboardInterrupt(message or "stopped; the same command goes on with what is finished")
        stopped.exit_code = 128 + received  # type: ignore[attr-defined]
        raise stopped from None


def _without_devices(typed: list[str]) -> list[str]:
    """Return a command without its option ``--devices``."""
    kept = [each for each in typed if not each.startswith("--devices=")]
    with suppress(ValueError):
        place = kept.index("--devices")
        del kept[place : place + 2]
    return kept


def _launch(count: int, command: list[str]) -> None:
    """Run Python with a command in some processes, as torchrun does, but with one line when one of them is lost."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="aimamba",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    goes_on = "the same command goes on with what is finished"
    logging.disable(logging.CRITICAL)  # the agent reports in its own words what a line tells
    # Its own handler would end it at a second signal, and its processes while they still save their work.
    config.signals_to_handle = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""
    handlers = handle(_stop_agent)
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            raise SystemExit(failure.exitcode) from None
        name = signal.Signals(-failure.exitcode).name
        raise LostError(f"rank {rank} (pid {failure.pid}) was ended by {name}; {goes_on}") from None
    except SignalException as signalled:
        if signalled.sigval == signal.SIGINT:
            raise SystemExit(130) from None  # the first process has said how far it came
        stopped = KeyboardInterrupt(f"stopped; {goes_on}")
        stopped.exit_code = 128 + signalled.sigval  # type: ignore[attr-defined]
        raise stopped from None
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop_agent(number: int, _frame: FrameType | None) -> None:
    """Let the agent of torchrun pass a signal on to its processes and wait for them, and ignore what follows."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise SignalException("stopped", signal.Signals(number))
