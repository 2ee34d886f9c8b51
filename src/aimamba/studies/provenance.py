"""Provenance of numbers: weights, machine, versions, commit, date."""

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import aimamba
from aimamba.cores import usable_cores


def provenance(device: torch.device) -> dict[str, Any]:
    """Return machine, versions and date of a run; in a clone also ``commit``, with ``-dirty`` if files were changed."""
    package = Path(aimamba.__file__).parent
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "aimamba": aimamba.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None:  # not in another's clone
        found["commit"] = _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git, or None if git is missing or fails."""
    try:
        command = ["git", "-C", str(folder), *arguments]  # the user's git, wherever it is
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
