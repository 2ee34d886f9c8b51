"""Commands whose output goes nowhere: closed, full, or without a reader."""

import os
import subprocess
import sys

import pytest

from aimamba.cli.streams import usable_streams

posix = pytest.mark.skipif(os.name != "posix", reason="as a POSIX shell closes streams")
full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


@posix
@pytest.mark.parametrize(
    "streams",
    [">&-", "2>&-", ">&- 2>&-", pytest.param("2>/dev/full", marks=full), "2>&1 >&- | true", "2>&1 | true"],
)
def test_the_work_is_done_whatever_becomes_of_its_output(streams, models, here):
    script = (
        f'{{ "{sys.executable}" -m aimamba sample --model "{models}/pipeline" -n 1 --out drawn; echo $? >status; }}'
    )
    subprocess.run(["bash", "-c", f"{script} {streams}"], check=False, capture_output=True)
    assert len(list((here / "drawn").glob("*-seed0.png"))) == 5
    gone = streams == "2>&1 | true"  # what is printed at the end has no reader
    assert (here / "status").read_text().strip() == ("141" if gone else "0")


class Full:
    """A stream that takes nothing."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")

    flush = write


def test_streams_are_as_before_afterwards(monkeypatch):
    error = Full()
    monkeypatch.setattr(error, "flush", lambda: None)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", error)
    with usable_streams():
        print("to nobody")
        print("to nobody either", file=sys.stderr, flush=True)
        assert sys.stderr.encoding == "utf-8"
    assert sys.stdout is None
    assert sys.stderr is error
