"""Ctrl-C and SIGTERM let the step in progress end, so that the run can be saved and continued."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved itself; the message says how to continue.

    Attributes:
        exit_code: What a shell expects of a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interruption:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one acts as it would have without.

    Attributes:
        received: The signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()
