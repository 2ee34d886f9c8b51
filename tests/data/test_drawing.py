"""Drawing that is interrupted ends at once."""

import os
import subprocess
import sys
from concurrent.futures import CancelledError

import pytest

from aimamba.data import drawing


@pytest.fixture
def request_():
    pytest.importorskip("dicebear")
    return drawing.DrawRequest("thumbs", "train", 0, 400, 16)


def test_what_a_stopped_process_did_not_deliver_is_not_drawn_here(request_, monkeypatch):
    monkeypatch.setattr(drawing, "_draw_here", lambda *_: pytest.fail("it is drawn all the same"))
    drawn = []

    def advance():
        drawn.append(1)
        work.stop()

    work = drawing._Work(advance)
    with pytest.raises(CancelledError):
        drawing._draw_apart(request_, work)
    assert len(drawn) < 400


def test_a_thread_that_draws_ends_after_its_present_image(request_):
    drawn = []
    work = drawing._Work(lambda: (drawn.append(1), work.stop()))
    with pytest.raises(CancelledError):
        drawing._draw_here(request_, work)
    assert len(drawn) == 1


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_reaches_the_program_alone(request_):
    """The terminal signals the whole group; processes that draw are not in it, and end with the program."""
    program = """
import os, signal
from aimamba.data import drawing
request = drawing.DrawRequest("thumbs", "train", 0, 100_000, 16)
seen = []
drawing._Work.advance = property(lambda _: lambda: seen or seen.append(os.killpg(0, signal.SIGINT)), lambda *_: None)
try:
    list(drawing.draw_all([request], processes=2))
except KeyboardInterrupt:
    print("stopped")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=60, check=False)
    assert done.stdout == "stopped\n", done.stderr
