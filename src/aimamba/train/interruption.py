"""Handle Ctrl-C, SIGTERM and SIGHUP: finish the current step, so that the run can be saved and continued."""

import signal
import threading
from types import FrameType
from typing import Any

from aimamba.signals import handle


class Interrupted(KeyboardInterrupt):
    """The run was interrupted by a signal and has been saved; the message says how to continue.

    Attributes:
        exit_code: The usual exit status for the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interruption:
    """A context in which the first of these signals is only recorded; a second one has its usual effect.

    Where a launcher ends several processes, one of them may get the same signal twice, from Slurm and from torchrun,
    and another while it reports that it ends. So ``lasting`` ignores further signals until the process has ended.

    Attributes:
        received: Number of the signal received, or 0.
    """

    def __init__(self, *, lasting: bool = False) -> None:
        self.received = 0
        self._lasting = lasting
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = handle(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lasting:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        self.__exit__()
