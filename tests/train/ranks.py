"""Several real processes of a run, joined by gloo, for tests: forked from a server that has imported torch once."""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks_task"])


@functools.cache
def _start_server() -> None:
    """Start the server. Python 3.11 gives it no other path than this one, and imports nothing where that fails."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Ranks:
    """Processes that call ``function(rank, *arguments)`` where torchrun would have started them.

    ``wait`` returns what they returned. What they print is in ``errors``, and ``codes`` has their exit codes.
    """

    def __init__(self, size: int, function: Callable[..., Any], *arguments: Any, logs: Path) -> None:
        self.logs = [logs / f"rank-{rank}-{os.urandom(4).hex()}.log" for rank in range(size)]
        _start_server()
        port, self._pipes, self.processes = free_port(), [], []
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            environment = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
            }  # fmt: skip
            given = (theirs, str(self.logs[rank]), environment, function, (rank, *arguments))
            process = CONTEXT.Process(target=_run, args=given, daemon=False)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait(self, timeout: float = 120.0) -> list[Any]:
        found = []
        try:
            for process, pipe in zip(self.processes, self._pipes, strict=True):
                with contextlib.suppress(EOFError):
                    if pipe.poll(timeout):
                        found.append(pipe.recv())
                process.join(timeout)
        finally:
            for process in self.processes:
                if process.is_alive():
                    process.kill()
        return found

    @property
    def codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]

    @property
    def errors(self) -> list[str]:
        return [log.read_text() for log in self.logs]


def together(size: int, function: Callable[..., Any], *arguments: Any, logs: Path) -> list[Any]:
    """Run ranks that are to succeed, and return what they return."""
    ranks = Ranks(size, function, *arguments, logs=logs)
    found = ranks.wait()
    assert ranks.codes == [0] * size, "\n".join(ranks.errors)
    return found


def _run(pipe: Any, log: str, environment: dict[str, str], function: Callable[..., Any], arguments: tuple) -> None:
    import torch

    from aimamba.errors import AimambaError

    torch.set_num_threads(1)  # as the tests do: the order of sums depends on it
    os.environ.update(environment)
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    code = 0
    try:
        pipe.send(function(*arguments))
    except (AimambaError, KeyboardInterrupt) as error:  # as the command line does it
        print(f"aimamba: {error}", file=sys.stderr)
        code = getattr(error, "exit_code", 2)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    pipe.close()
    sys.stderr.flush()
    sys.exit(code)
