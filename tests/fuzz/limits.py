"""Bounds on what one attempt may use: seconds by an alarm, memory by the system's limit for the process."""

import contextlib
import faulthandler
import resource
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, TextIO

SECONDS = 10  # of one attempt; the machines of a CI are slow
GIGABYTES = 3  # beyond what the process has when it begins; the largest image that Pillow decodes takes two


class TooSlowError(BaseException):
    """An attempt took too long. It is no ``Exception``, so that no reader takes it for a damaged file."""


@contextlib.contextmanager
def within(log: TextIO, seconds: float = SECONDS) -> Iterator[None]:
    """Raise ``TooSlowError`` in the block after some seconds; a call that does not return ends the process.

    Args:
        log: Where the traceback of such a call goes.
        seconds: How long the block may take.
    """

    def ring(_: int, __: FrameType | None) -> NoReturn:
        raise TooSlowError(f"took more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(6 * seconds, exit=True, file=log)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def limit_memory(gigabytes: float = GIGABYTES) -> None:
    """Let this process have so much memory beyond what it has now."""
    with open("/proc/self/status", encoding="ascii") as status:
        [line] = [line for line in status if line.startswith("VmData")]
    now = int(line.split()[1]) << 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + int(gigabytes * (1 << 30)), hard))
