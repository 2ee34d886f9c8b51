"""Write files in a thread beside the work that makes their content."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class BackgroundWriter:
    """Runs tasks in order in one thread, with a bounded number of them waiting.

    Use it as a context: leaving it waits until every task is finished, also after an interruption, so that nothing that
    was handed over is lost. An error of a task is raised by the next ``put``, or on leaving, as itself; tasks that have
    not begun by then are dropped.

    Args:
        waiting: Tasks that may be unfinished when ``put`` returns.
    """

    def __init__(self, waiting: int = 1) -> None:
        self._waiting = waiting
        self._tasks: deque[Future[Any]] = deque()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aimamba-writer")
        self.finished = 0
        """Tasks that have been finished."""

    def put(self, task: Callable[[], object]) -> None:
        """Hand over a task; wait while too many are unfinished.

        Raises:
            Exception: An error of an earlier task.
        """
        self._tasks.append(self._executor.submit(self._run, task))
        while self._tasks and (self._tasks[0].done() or len(self._tasks) > self._waiting):
            self._take()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all tasks. An error of the block itself goes before one of a task."""
        try:
            while self._tasks:
                self._take()
        except Exception:
            if error is None:
                raise
        finally:
            self._executor.shutdown(cancel_futures=True)

    def _take(self) -> None:
        try:
            self._tasks.popleft().result()
        except Exception:
            for task in self._tasks:
                task.cancel()
            self._tasks.clear()
            raise

    def _run(self, task: Callable[[], object]) -> None:
        task()
        self.finished += 1
