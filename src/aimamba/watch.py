"""Notice in every process of a run that another one has ended or hangs, and end with one line.

Each process shows a sign of life in a store that all of them reach. A collective operation alone would not do: it
waits for minutes, with NCCL it ends in a page of C++, and it cannot say which process is missing.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from torch.distributed import Store  # type: ignore[attr-defined]  # not in its __all__

_SIGNS = 6  # of life within a timeout
_MOST_BETWEEN = 2.0  # seconds between two signs
_GRACE = 1.5  # seconds that a process has to end by itself after another one has failed, which may have told it why
_SLOW = 4  # a step may take as many times as long as the longest so far
_DONE, _FAILED = "done", "failed"
_TOLD = f"{_FAILED}:told:"  # before what a process has told, which the others tell too


class _Sign(NamedTuple):
    """A sign of life: when this process saw it, its text, and how far the other one's main thread was."""

    seen: float
    text: str
    steps: int


class Watch(threading.Thread):
    """Watches the other processes, and this one's main thread."""

    def __init__(self, store: Store, rank: int, size: int, *, timeout: float, advice: str = "") -> None:
        """Prepare; ``begin`` shows the first sign, and ``start`` starts the thread.

        Args:
            store: Reached by all processes.
            rank: Number of this process.
            size: Number of processes.
            timeout: Seconds without a sign of life, or of the main thread's progress, after which a process is lost.
            advice: Ends the line that is printed.
        """
        super().__init__(name="watch", daemon=True)
        self._store, self._rank, self._size = store, rank, size
        self._timeout, self._advice = timeout, advice
        self._every = min(timeout / _SIGNS, _MOST_BETWEEN)
        self._count, self._since, self._longest = 0, time.monotonic(), 0.0
        self._patient = 1  # until the first step
        self._beat = 0
        self._done = False
        self._signs: dict[int, _Sign] = {}
        self._over = threading.Event()
        self._told = threading.Lock()

    def begin(self) -> None:
        """Show the first sign of life."""
        self._store.set(f"host/{self._rank}", f"{socket.gethostname()}, pid {os.getpid()}")
        self._show()

    def progress(self) -> None:
        """Note that the main thread goes on: it has read its examples, or has taken a step."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._count, self._since = self._count + 1, now

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Do not expect progress meanwhile, as when one process evaluates or encodes and the others wait."""
        self._patient += 1
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._patient -= 1

    def expect_progress(self) -> None:
        """Expect progress from now on: the first step, which compiles kernels, has been taken."""
        self._longest, self._since = 0.0, time.monotonic()
        self._patient -= 1

    def leave(self) -> None:
        """Tell the others that this process is done, and watch them until ``end``: they may still be at work."""
        self._done = True
        with contextlib.suppress(RuntimeError):
            self._show()

    def end(self, failure: str | None = None) -> None:
        """Stop watching, and tell the others that this process ends; with ``failure`` they end too."""
        self._over.set()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"beat/{self._rank}", _DONE if failure is None else f"{_FAILED}:{failure}")

    def wait_for_others(self, seconds: float) -> None:
        """Wait until the others end too, at most some seconds."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < deadline:
                self._look()
                if all(sign.text.startswith((_DONE, _FAILED)) for sign in self._signs.values()):
                    return
                time.sleep(self._every / 10)

    def end_process_within(self, seconds: float) -> None:
        """End this process after some seconds if it is still there."""
        timer = threading.Timer(seconds, os._exit, (2,))
        timer.daemon = True
        timer.start()

    def run(self) -> None:
        """Watch until ``end``."""
        while not self._over.wait(self._every):
            try:
                self._show()
                self._look()
            except RuntimeError:  # the store is gone
                if self._done:  # with the process that holds it, which has ended first
                    return
                line = "the process that holds the run together, torchrun's first, does not answer"
                self._tell(line)
                continue
            if (fault := self._fault()) is not None:
                self._tell(fault)

    def blame(self) -> str:
        """Return a line on which process is lost, after an exchange has failed: wait for it to miss its signs."""
        if not self._told.acquire(blocking=False):
            time.sleep(self._timeout)  # the watch has printed its line, and ends the process
        self._over.set()
        deadline = time.monotonic() + min(self._timeout, 5 * self._every)
        while time.monotonic() < deadline:
            try:
                self._show()
                self._look()
            except RuntimeError:
                break
            if told := self._told_by_another():
                return self._line(told)
            if failed := self._silent(2.5 * self._every):
                return self._line(f"{self._named(failed)} ended or lost the connection")
            time.sleep(self._every / 2)
        return self._line("another process ended or lost the connection")

    def _show(self) -> None:
        self._beat += 1
        self._store.set(f"beat/{self._rank}", _DONE if self._done else f"{self._beat} {self._count}")

    def _look(self) -> None:
        now = time.monotonic()
        others = [rank for rank in range(self._size) if rank != self._rank]
        texts = self._store.multi_get([f"beat/{rank}" for rank in others])
        for rank, read in zip(others, texts, strict=True):
            text = read.decode()
            if rank not in self._signs or self._signs[rank].text != text:
                count = text.partition(" ")[2]
                self._signs[rank] = _Sign(now, text, int(count) if count.isdecimal() else 0)

    def _silent(self, seconds: float, grace: float = 0.0) -> list[int]:
        """Return the processes that failed ``grace`` seconds ago, or have shown no sign for some seconds."""
        now = time.monotonic()
        failed = [r for r, sign in self._signs.items() if sign.text.startswith(_FAILED) and now - sign.seen >= grace]
        return failed or [r for r, sign in self._signs.items() if sign.text != _DONE and now - sign.seen > seconds]

    def _fault(self) -> str | None:
        """Return what is wrong, or None."""
        if told := self._told_by_another():
            return told
        if silent := self._silent(self._timeout, _GRACE):
            failed = self._signs[silent[0]].text.startswith(_FAILED)
            return f"{self._named(silent)} " + ("ended" if failed else f"gave no sign for {self._timeout:.0f} s")
        waited = time.monotonic() - self._since
        if self._patient or waited < max(self._timeout, _SLOW * self._longest):
            return None
        counts = {rank: sign.steps for rank, sign in self._signs.items()} | {self._rank: self._count}
        behind = [rank for rank, count in counts.items() if count < max(counts.values())]
        who = f"{self._named(behind)} hangs" if behind else "a process hangs, and it is not known which"
        return f"no step was finished for {waited:.0f} s: {who}"

    def _told_by_another(self) -> str | None:
        return next((s.text.removeprefix(_TOLD) for s in self._signs.values() if s.text.startswith(_TOLD)), None)

    def _named(self, ranks: list[int]) -> str:
        with contextlib.suppress(RuntimeError):
            hosts = [self._store.get(f"host/{rank}").decode() for rank in ranks]
            return ", ".join(f"rank {rank} ({host})" for rank, host in zip(ranks, hosts, strict=True))
        return ", ".join(f"rank {rank}" for rank in ranks)

    def _line(self, what: str) -> str:
        return f"rank {self._rank} stops: {what}" + (f"; {self._advice}" if self._advice else "")

    def _tell(self, what: str) -> None:
        """Print a line and end this process, whose main thread may wait where Python cannot reach it."""
        if not self._over.is_set() and self._told.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):
                self._store.set(f"beat/{self._rank}", f"{_TOLD}{what}")
            print(f"aimamba: {self._line(what)}", file=sys.stderr, flush=True)
            os._exit(2)
        self._over.set()
