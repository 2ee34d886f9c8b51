"""How the processes of a run share its model and its batches: settings, and what they come to for a number of them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aimamba.config import check
from aimamba.train.settings import FitConfig

_LEAST_TIMEOUT = 5.0


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Settings of a run of many processes, which torchrun starts. The results do not depend on them.

    Attributes:
        replicate: Number of copies of the model; each learns from its part of a batch. By default what ``shard``
            leaves.
        shard: Number of processes that share one copy: parameters, gradients, optimiser and moving average. They learn
            from different parts of a batch too. By default 1, or what ``replicate`` leaves.
        timeout: Seconds without a sign of life, or without a finished step, after which a process counts as lost and
            all others end. A step may take four times as long as the longest before it.
    """

    replicate: int | None = None
    shard: int | None = None
    timeout: float = 25.0

    def __post_init__(self) -> None:
        for name in ("replicate", "shard"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"parallel.{name} must be at least 1, got {value}")
        check(
            _LEAST_TIMEOUT <= self.timeout < 1e6,
            f"parallel.timeout must be at least {_LEAST_TIMEOUT:g} seconds, got {self.timeout:g}",
        )


class Layout(NamedTuple):
    """Numbers of copies of the model, and of processes that share one."""

    replicate: int
    shard: int


def find_layout(config: ParallelConfig, processes: int, command: Sequence[str] = ()) -> Layout:
    """Return the layout that the settings give for a number of processes.

    Args:
        config: The settings.
        processes: Number of processes.
        command: What was typed, for the message: the arguments of ``aimamba``.

    Raises:
        ConfigError: The settings need another number of processes.
    """
    given = {name: value for name in ("replicate", "shard") if (value := getattr(config, name)) is not None}
    if len(given) == 1 and processes > 1 and processes % (one := next(iter(given.values()))) == 0:
        other = processes // one
        return Layout(one, other) if "replicate" in given else Layout(other, one)
    if not given:
        return Layout(processes, 1)
    needed = 1
    for value in given.values():
        needed *= value
    if needed == processes:
        return Layout(config.replicate or 1, config.shard or 1)
    settings = " x ".join(f"parallel.{name} = {value}" for name, value in given.items())
    if processes == 1:
        typed = shlex.join(command or ["train", "RECIPE"])
        check(
            False,
            f"{settings} needs {needed} processes, and there is one; type: torchrun --nproc-per-node {needed} "
            f"-m aimamba {typed}",
        )
    times = "a multiple of that" if len(given) == 1 else "that number"
    check(False, f"{settings} does not fit {processes} processes; start {times}, or leave one of the settings out")
    raise AssertionError


def check_shares(config: FitConfig, processes: int) -> None:
    """Check that every process gets as many images of a batch as the others, and that the settings suit several.

    Raises:
        ConfigError: They do not.
    """
    parts = processes * config.accumulation
    check(
        config.batch_size % parts == 0,
        f"fit.batch_size = {config.batch_size} must be a multiple of {processes} processes x fit.accumulation = "
        f"{config.accumulation}; set one of them so that it is",
    )
    check(
        config.cuda_graph is not True,
        f"fit.cuda_graph records the step of one process, and there are {processes}; set it to false",
    )
    check(
        config.compile is not True,
        f"fit.compile = true compiles the model of one process, and there are {processes}; set it to 'blocks'",
    )
