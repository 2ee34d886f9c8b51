"""``model/``: the result of a finished run, and how it is replaced when the run is extended."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from aimamba.config import check
from aimamba.errors import ConfigError
from aimamba.train.checkpoint import CHECKPOINT_FILE, Resolve, check_same_recipe
from aimamba.train.toml import read_toml, to_toml

RESULT, _OLD = "model", "model.old"
_MARKER = "recipe.toml"  # in the folder of the result: the recipe that made it


def save_result(out: Path, recipe: str, save: Callable[[Path], object]) -> None:
    """Write ``out/model``, with the recipe that made it.

    The new folder is complete and on the disk before it gets its name. An older result is renamed first and removed
    last. So a run that is killed at any moment has a complete result, or a checkpoint from which the same command
    writes it.

    Args:
        out: Folder of the run.
        recipe: The recipe of the run, as TOML.
        save: Writes the model to the folder it is called with.
    """
    folder, draft, old = out / RESULT, out / f"{RESULT}.partial", out / _OLD
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save(draft)
    (draft / _MARKER).write_text(recipe, encoding="utf-8")
    sync_tree(draft)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    draft.rename(folder)
    _sync(out)
    discard_old_result(out)


def discard_old_result(out: Path) -> None:
    """Remove the result of a shorter run that a killed process has left behind."""
    shutil.rmtree(out / _OLD, ignore_errors=True)


def is_finished(out: Path, recipe: str, steps: int, resolve: Resolve) -> bool:
    """Return whether ``out`` already holds the model of this recipe after ``steps`` steps.

    A result whose recipe is missing or damaged does not count if there is a checkpoint from which it can be written
    again.

    Raises:
        ConfigError: ``out`` holds another model: the run would overwrite it and has no checkpoint to continue from.
    """
    model, marker = out / RESULT, out / RESULT / _MARKER
    if not model.exists():
        return False
    has_checkpoint = (out / CHECKPOINT_FILE).exists()
    if not marker.exists():
        check(has_checkpoint, f"{model} was not made by a training run and would be replaced; give another --out")
        return False
    try:
        finished = read_toml(marker)
        taken = finished["fit"]["steps"]
        check(type(taken) is int, f"fit.steps is {taken!r}")
    except (ConfigError, KeyError, TypeError) as error:
        check(
            has_checkpoint,
            f"{marker} is damaged and there is no {CHECKPOINT_FILE} to repair it from; give another --out, "
            f"or delete {model} to start over",
        )
        print(f"{marker} is damaged ({error}); the model will be saved again from {CHECKPOINT_FILE}", file=sys.stderr)
        return False
    check_same_recipe(to_toml(finished), recipe, out, resolve)
    if taken == steps:
        return True
    if not has_checkpoint:
        raise ConfigError(
            f"{out} holds a model of {taken} steps and no {CHECKPOINT_FILE} to train on from; "
            f"give another --out, or delete {model} to start over"
        )
    return False


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder in ``folder`` is on the disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        with (
            contextlib.suppress(OSError) if is_folder else contextlib.nullcontext()
        ):  # some file systems refuse folders
            os.fsync(handle)
    finally:
        os.close(handle)
