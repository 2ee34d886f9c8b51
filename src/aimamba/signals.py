"""Signals that stop a command: Ctrl-C, SIGTERM, and SIGHUP, which a terminal sends when it is closed."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let ``handler`` have them, except for a SIGHUP that is ignored, as under ``nohup``.

    Returns:
        The handlers of before, for ``signal.signal``.
    """
    ignored = {number for number in STOPPING[2:] if signal.getsignal(number) is signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number in STOPPING if number not in ignored}
