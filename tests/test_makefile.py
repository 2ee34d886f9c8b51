"""What ``make`` would do: the demo takes a small PyTorch and nothing for development."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPU = "--no-deps --index-url https://download.pytorch.org/whl/cpu"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*arguments):
    command = ["make", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one build alone")
@pytest.mark.parametrize(("build", "small"), [("cpu", True), ("cuda", False)])
def test_the_build_of_torch_is_chosen(tmp_path, build, small):
    planned = make("-n", f"VENV={tmp_path / 'venv'}", f"TORCH={build}", "demo").stdout
    assert (CPU in planned) == small
    assert "--constraint constraints.txt" in planned
    assert "[dev]" not in planned
    assert "aimamba sample --model avatars-64" in planned
    assert "aimamba sample --model avatars-64-text --prompt" in planned


def test_the_suite_has_the_tools(tmp_path):
    planned = make("-n", f"VENV={tmp_path / 'venv'}", "TORCH=cpu", "test").stdout
    assert "--editable '.[dev]'" in planned
    assert CPU not in planned


def test_what_is_installed_already_is_enough_for_the_demo(tmp_path):
    (tmp_path / ".ready").touch()
    assert "pip install" not in make("-n", f"VENV={tmp_path}", "demo").stdout


def test_an_old_python_is_one_line(tmp_path):
    old = tmp_path / "python3.10"
    patched = "import sys; sys.version_info = (3, 10); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{patched}' \"$2\"\n")
    old.chmod(0o755)
    for target in (".demo", ".ready"):
        done = make(f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", tmp_path / "venv" / target)
        said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert said == [
            f"aimamba needs Python 3.11 or newer, and {old} is 3.10; choose another: make PYTHON=python3.12"
        ]
        assert not (tmp_path / "venv").exists()
