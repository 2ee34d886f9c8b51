"""Clocks and memory."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def repeated(
    run: Callable[[], object], device: torch.device, *, limit: float, warm_up: int = 1, least: int = 3, most: int = 20
) -> list[float]:
    """Seconds of several calls: ``most`` of them, fewer where they would take longer than ``limit`` seconds."""
    for _ in range(warm_up):
        run()
    taken: list[float] = []
    while len(taken) < most and (len(taken) < least or sum(taken) + taken[-1] < limit):
        taken.append(seconds(run, device))
    return taken


def windows(steps: Iterator[object], device: torch.device, *, count: int, length: int) -> list[float]:
    """Seconds a step, for ``count`` windows of ``length`` steps; fewer where the steps come to an end."""
    taken = []
    for _ in range(count):
        synchronize(device)
        start = time.perf_counter()
        done = 0
        while done < length and next(steps, steps) is not steps:
            done += 1
        synchronize(device)
        if done == 0:
            break
        taken.append((time.perf_counter() - start) / done)
    return taken


def forget_peak(device: torch.device) -> None:
    """Begin to count ``peak_bytes`` from what is held now; on other systems than Linux the host's peak stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _FORGET.exists():
        with suppress(OSError):  # not allowed in some containers
            _FORGET.write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held: resident on the host, allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024  # kilobytes on other systems than macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
