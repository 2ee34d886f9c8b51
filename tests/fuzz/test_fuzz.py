"""A short run of the fuzzer, the same every time; ``python -m tests.fuzz --minutes 60`` is the long one."""

import subprocess
import sys
from pathlib import Path


def test_no_door_breaks():
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "0", "--examples", "15"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
