"""The checkpoints in the folder of a run: their names, which is the newest, and which may be removed.

``checkpoint.pt`` is the newest of one process, ``checkpoint-000100.pt`` an older one, and ``checkpoint-000100.dcp`` a
folder that many processes wrote.
"""

import contextlib
import re
from pathlib import Path

import torch

from aimamba.documents import read_json
from aimamba.files import remove_tree

CHECKPOINT_FILE = "checkpoint.pt"
MANIFEST, SHARDED_FORMAT = "state.json", "aimamba sharded training run 1"
"""In the folder of many processes; without it the folder is not whole."""

_OLDER = re.compile(r"checkpoint-(\d{6,12})\.(?:pt|dcp)")  # with the number of steps


def checkpoint_files(out: Path) -> list[Path]:
    """Return the checkpoints in the folder of a run, the newest first."""
    newest, older = out / CHECKPOINT_FILE, _older(out)
    if not newest.exists():
        return older
    if not any(path.suffix == ".dcp" for path in older):
        return [newest, *older]
    steps = _steps_inside(newest)
    after = [] if steps is None else [path for path in older if _steps(path) > steps]
    return [*after, newest, *older[len(after) :]]


def older_name(step: int) -> str:
    """Return the name of an older checkpoint of one process, after its number of steps."""
    return f"checkpoint-{step:06d}.pt"


def sharded_name(step: int) -> str:
    """Return the name of the checkpoint that many processes write after some steps."""
    return f"checkpoint-{step:06d}.dcp"


def remove_superfluous(out: Path, newest: Path, step: int, count: int) -> None:
    """Remove older checkpoints than are to be kept, and those of steps that are taken again.

    Args:
        out: Folder of the run.
        newest: The checkpoint that was just written.
        step: Its number of steps.
        count: Number of checkpoints to keep, with it.
    """
    others = [path for path in _older(out) if path != newest and _is_ours(path)]
    earlier = [older for older in others if _steps(older) < step][: count - 1]
    for superfluous in set(others) - set(earlier):
        with contextlib.suppress(OSError):
            (superfluous / MANIFEST if superfluous.is_dir() else superfluous).unlink()
        if superfluous.is_dir():
            remove_tree(superfluous)


def demote_single(out: Path, step: int, *, keep: bool) -> None:
    """Rename or remove the ``checkpoint.pt`` of one process, because a newer checkpoint has another name.

    Args:
        out: Folder of the run.
        step: Number of steps of the newer one.
        keep: Whether to rename it after its number of steps instead of removing it.
    """
    single = out / CHECKPOINT_FILE
    if not single.exists():
        return
    before = _steps_inside(single) if keep else None
    with contextlib.suppress(OSError):
        if before is not None and before < step:
            single.rename(out / older_name(before))
        else:
            single.unlink()


def _steps_inside(path: Path) -> int | None:
    """Return the number of steps in a ``checkpoint.pt``, without reading its tensors; None if it is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content["step"] if isinstance(content["step"], int) else None
    except Exception:  # a truncated archive or pickle can fail in any way
        return None


def _older(out: Path) -> list[Path]:
    found = [path for path in out.iterdir() if _OLDER.fullmatch(path.name)] if out.is_dir() else []
    return sorted(found, key=_steps, reverse=True)


def _is_ours(path: Path) -> bool:
    """Return whether a checkpoint may be removed: a file, or a folder that says that it is one, but no link."""
    if path.is_symlink() or not path.is_dir():
        return path.suffix == ".pt"
    try:
        return path.suffix == ".dcp" and read_json(path / MANIFEST)["format"] == SHARDED_FORMAT
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _steps(path: Path) -> int:
    named = _OLDER.fullmatch(path.name)
    return int(named[1]) if named else 0
