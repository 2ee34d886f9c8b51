"""Measure time and peak memory."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, including the work on the device."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def repeated(
    run: Callable[[], object], device: torch.device, *, limit: float, warm_up: int = 1, least: int = 3, most: int = 20
) -> list[float]:
    """Return the seconds of up to ``most`` calls; fewer, but at least ``least``, beyond ``limit`` seconds."""
    for _ in range(warm_up):
        run()
    taken: list[float] = []
    while len(taken) < most and (len(taken) < least or sum(taken) + taken[-1] < limit):
        taken.append(seconds(run, device))
    return taken


def windows(steps: Iterator[object], device: torch.device, *, count: int, length: int) -> list[float]:
    """Return the seconds per step of ``count`` windows of ``length`` steps; fewer if the steps run out."""
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


def reset_peak(device: torch.device) -> None:
    """Reset ``peak_bytes`` to the memory in use now. The peak of the host can only be reset on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        with suppress(OSError):  # not allowed in some containers
            _CLEAR_REFS.write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: resident on the host, or allocated on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
