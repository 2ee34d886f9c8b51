"""Bounds on what one attempt may use: seconds by alarms, memory by the system's limit for the process."""

import contextlib
import faulthandler
import resource
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, TextIO

SECONDS = 10  # of a processor, for one attempt; the machines of a CI are slow
_WAITING = 6  # times as long an attempt may take by the clock: a busy machine lets it wait
GIGABYTES = 3  # beyond what the process has when it begins; the largest image that Pillow decodes takes two


class TooSlowError(BaseException):
    """An attempt took too long. It is no ``Exception``, so that no reader takes it for a damaged file."""


@contextlib.contextmanager
def within(log: TextIO, seconds: float = SECONDS) -> Iterator[None]:
    """Raise ``TooSlowError`` in the block after some seconds; a call that does not return ends the process.

    Args:
        log: Where the traceback of such a call goes.
        seconds: How long the block may compute. It may take ``_WAITING`` times as long by the clock.
    """

    def ring(_: int, __: FrameType | None) -> NoReturn:
        raise TooSlowError(f"took more than {seconds:g} seconds")

    alarms = (signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, _WAITING * seconds)
    before = [signal.signal(number, ring) for number, _, _ in alarms]
    for _, timer, limit in alarms:
        signal.setitimer(timer, limit)
    faulthandler.dump_traceback_later(2 * _WAITING * seconds, exit=True, file=log)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for (number, timer, _), handler in zip(alarms, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def limit_memory(gigabytes: float = GIGABYTES) -> None:
    """Let this process have so much memory beyond what it has now."""
    with open("/proc/self/status", encoding="ascii") as status:
        [line] = [line for line in status if line.startswith("VmData")]
    now = int(line.split()[1]) << 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + int(gigabytes * (1 << 30)), hard))
