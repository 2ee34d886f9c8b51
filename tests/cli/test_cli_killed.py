"""kill -9 at random moments of training both stages and of encoding: the same command ends with the same files.

A few moments in every run of the suite; ``make test-kills`` tries twenty of each command. Each attempt is a process
forked from this one, so none has to import torch.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from aimamba.train.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and killed as on Linux")

KILLS = int(os.environ.get("AIMAMBA_TEST_KILLS", "2"))  # of each command
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
_OFTEN = ("fit.checkpoint_every=1", "fit.evaluate_every=2", "fit.sheet_every=2", "fit.log_every=1", "fit.checkpoints=2")
_TRAIN = ("--device", "cpu", *(word for setting in _OFTEN for word in ("--set", setting)))
COMMANDS = {
    "tokenizer": ("train", "{given}/vq.toml", "--out", "{out}", *_TRAIN),
    "generator": ("train", "{given}/aim.toml", "--tokenizer", "{given}/runs/vq", "--out", "{out}", *_TRAIN),
    "encoding": ("encode", "{given}/runs/vq", "photos", "--size", "16", "--out", "{out}", "--batch-size", "2"),
}


def start(command: list[str], out: str, events: Path, kill_at: int = 0) -> int:
    """Run a command in a forked process, which kills itself before the file operation in ``out`` of that number.

    ``events`` gets a byte for each of them.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(silence, number)
        log, done = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal done
            if event in _EVENTS and out in str(arguments[0]):
                done += 1
                os.write(log, b".")
                if done == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        from aimamba.cli import main

        status = main(command)
    finally:
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(out: Path) -> dict[str, bytes]:
    """Return what must be the same: everything but checkpoints, metrics and images of progress."""
    found = (path for path in sorted(out.rglob("*")) if path.is_file())
    kept = {str(path.relative_to(out)): path.read_bytes() for path in found if path.suffix not in (".jsonl", ".pt")}
    assert not [name for name in kept if Path(name).name.startswith(".") or ".partial" in name or ".old" in name]
    return kept


@pytest.mark.parametrize("name", COMMANDS)
def test_kill_9_at_random_moments(here, trained, photos, name):
    draw = random.Random(name)

    def given(out: str) -> list[str]:
        return [word.format(given=trained, out=out) for word in COMMANDS[name]]

    began = time.monotonic()
    assert ended(start(given("whole"), "whole", here / "events")) == 0
    seconds, events = time.monotonic() - began, (here / "events").stat().st_size
    assert events > 10
    killed = 0
    for number in range(KILLS):
        out = f"killed-{number}"
        part = (number + draw.random()) / KILLS  # one moment in each part of the run
        if number % 3 == 2:
            child = start(given(out), out, here / "events")
            time.sleep(part * seconds)
            os.kill(child, signal.SIGKILL)
        else:
            child = start(given(out), out, here / "events", 1 + int(part * events))
        killed += ended(child) == -signal.SIGKILL
        assert ended(start(given(out), out, here / "events")) == 0
        assert files(here / out) == files(here / "whole"), (number, part)
        if name != "encoding":
            one, other = (read_checkpoint(here / folder / "checkpoint.pt") for folder in (out, "whole"))
            assert one.step == other.step
            torch.testing.assert_close(one.parts, other.parts, rtol=0, atol=0)
    assert killed >= KILLS // 2
