"""Detect other programs that kept the machine busy during a measurement. Does not import torch."""

import os
import resource
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class Disturbance:
    """Counts the cores that other programs keep busy, from its creation on."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """Return the mean number of busy cores since the start; None if the system does not report it."""
        wall, busy, own = self.start
        now = _busy_seconds()
        if now is None or busy is None:
            return None
        return max(0.0, (now - busy - (_own_seconds() - own)) / (time.perf_counter() - wall))


def _busy_seconds() -> float | None:
    """Busy seconds of all cores and all programs: user, nice, system and interrupt time on Linux."""
    if not _STAT.is_file():
        return None
    user, nice, system, _, _, hard, soft, *_ = map(int, _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:])
    return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
