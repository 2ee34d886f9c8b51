"""Write files in threads beside the work that makes their content."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from aimamba.cores import usable_cores

_MOST_THREADS = 4


class BackgroundWriter:
    """Runs groups of tasks in a few threads: a group begins when every task of the one before it is finished.

    So one group at most is unfinished while the next one is made. Use it as a context: leaving it waits until every
    task is finished, also after an interruption, so that nothing that was handed over is lost. An error of a task is
    raised by the next ``put``, or on leaving, as itself; of several, that of the first task. Tasks that have not begun
    by then are dropped.

    Args:
        threads: Tasks of a group that run at once; by default up to 4, for half of the processor's cores at most.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._tasks: deque[Future[Any]] = deque()
        threads = max(1, min(_MOST_THREADS, usable_cores() // 2)) if threads is None else threads
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="aimamba-writer")

    def put(self, group: Iterable[Callable[[], object]]) -> None:
        """Hand over a group of tasks; wait for the one before it.

        Raises:
            Exception: An error of an earlier task.
        """
        self._finish()
        self._tasks.extend(map(self._executor.submit, group))

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all tasks. An error of the block itself goes before one of a task."""
        try:
            self._finish()
        except Exception:
            if error is None:
                raise
        finally:
            self._executor.shutdown(cancel_futures=True)

    def _finish(self) -> None:
        try:
            while self._tasks:
                self._tasks[0].result()
                self._tasks.popleft()
        except Exception:
            for task in self._tasks:
                task.cancel()
            self._tasks.clear()
            raise
