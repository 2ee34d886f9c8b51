"""Whether other programs kept the machine busy while something was measured. Imports no torch."""

import os
import resource
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class Disturbance:
    """How many cores other programs keep busy, from now on."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """Mean number since the start; None where the system does not say."""
        wall, busy, own = self.start
        now = _busy_seconds()
        if now is None or busy is None:
            return None
        return max(0.0, (now - busy - (_own_seconds() - own)) / (time.perf_counter() - wall))


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked, for anyone: what Linux counts as user, nice, system, interrupts."""
    if not _STAT.is_file():
        return None
    user, nice, system, _, _, hard, soft, *_ = map(int, _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:])
    return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Seconds of CPU that this process and its finished children have had."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
