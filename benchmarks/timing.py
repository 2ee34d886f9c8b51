"""Clocks and memory."""

import resource
import sys
import time
from collections.abc import Callable, Iterator

import torch


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


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held: resident on the host, allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
