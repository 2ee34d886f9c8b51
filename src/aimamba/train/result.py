"""``model/``: the result of a finished run, and how it is replaced when the run is extended.

Where the best evaluation was not the last one, ``model/`` holds its weights, and ``model-last/`` the last ones.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimamba.config import check
from aimamba.documents import parse_toml, read_json
from aimamba.errors import ConfigError
from aimamba.files import naming, remove_drafts, write_atomically
from aimamba.train.checkpoint import Resolve, check_same_recipe
from aimamba.train.checkpoint_files import CHECKPOINT_FILE, checkpoint_files
from aimamba.train.toml import read_toml, to_toml

RESULT, LAST = "model", "model-last"
_MARKER = "recipe.toml"  # in the folder of the result: the recipe that made it
_ABOUT = "result.json"  # beside it: which model it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a saved model is.

    Attributes:
        step: Number of steps after which it was taken.
        steps: Number of steps that the run took.
        keep: The run's ``fit.keep``.
        patience: The run's ``fit.patience``.
        metrics: The model's metrics on held-out examples.
    """

    step: int
    steps: int
    keep: str
    patience: int
    metrics: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write it to the folder of the model. NaN and infinity become ``null``, because JSON has neither."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        text = json.dumps({**dataclasses.asdict(self), "metrics": metrics}, indent=2) + "\n"
        write_atomically(folder / _ABOUT, lambda draft: draft.write_text(text, encoding="utf-8"))


def read_about(out: Path) -> About | None:
    """Return what the result of the run in ``out`` is; None where that is not recorded or damaged."""
    try:
        values: Any = read_json(out / RESULT / _ABOUT)
        about = About(**values)
        numbers = [value for value in about.metrics.values() if value is not None]
        whole = all(type(value) is int for value in (about.step, about.steps, about.patience))
        if not whole or not all(type(value) in (int, float) for value in numbers):
            return None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    metrics = {name: math.nan if value is None else float(value) for name, value in about.metrics.items()}
    return dataclasses.replace(about, metrics=metrics)


def save_result(out: Path, recipe: str, save: Callable[[Path], object], *, name: str = RESULT) -> None:
    """Write ``out/model``, with the recipe that made it.

    The new folder is complete and on the disk before it gets its name. An older result is renamed first and removed
    last. So a run that is killed at any moment has a complete result, or a checkpoint from which the same command
    writes it.

    Args:
        out: Folder of the run.
        recipe: The recipe of the run, as TOML.
        save: Writes the model to the folder it is called with.
        name: Name of the folder, ``model`` or ``model-last``.
    """
    folder, draft, old = (out / f"{name}{end}" for end in ("", ".partial", ".old"))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        save(draft)
        write_atomically(draft / _MARKER, lambda path: path.write_text(recipe, encoding="utf-8"))
        sync_tree(draft)
    except BaseException:  # on a full disk it would be in the way of what is tried next
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    draft.rename(folder)
    _sync(out)
    discard_old_result(out)


def discard_old_result(out: Path) -> None:
    """Remove the result of a shorter run that a killed process has left behind."""
    for name in (RESULT, LAST):
        shutil.rmtree(out / f"{name}.old", ignore_errors=True)


def remove_old_drafts(out: Path) -> None:
    """Remove the drafts of files that a killed process has left behind."""
    for folder in (out, out / "sheets"):
        remove_drafts(folder)


def discard_last(out: Path) -> None:
    """Remove ``model-last/``, because the result itself is the last model."""
    shutil.rmtree(out / LAST, ignore_errors=True)


def is_finished(out: Path, recipe: str, steps: int, resolve: Resolve) -> bool:
    """Return whether ``out`` already holds the model of this recipe after ``steps`` steps.

    A result whose recipe is missing or damaged does not count if there is a checkpoint from which it can be written
    again. Nor does one that another ``fit.keep`` chose, or that ``fit.patience`` ended early and another value would
    not.

    Raises:
        ConfigError: ``out`` holds another model: the run would overwrite it and has no checkpoint to continue from.
    """
    model, marker = out / RESULT, out / RESULT / _MARKER
    if not model.exists():
        return False
    has_checkpoint = bool(checkpoint_files(out))
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
        return not (has_checkpoint and _another_is_wanted(read_about(out), parse_toml(recipe).get("fit", {})))
    if not has_checkpoint:
        raise ConfigError(
            f"{out} holds a model of {taken} steps and no {CHECKPOINT_FILE} to train on from; "
            f"give another --out, or delete {model} to start over"
        )
    return False


def _another_is_wanted(about: About | None, fit: Any) -> bool:
    if about is None:  # a version before 0.3 made it
        return False
    stopped_early = about.steps < fit.get("steps", 0)
    other_patience = about.patience != fit.get("patience", 0)
    return about.keep != fit.get("keep", about.keep) or (stopped_early and other_patience)


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
        with contextlib.suppress(OSError) if is_folder else naming(path):  # some file systems refuse folders
            os.fsync(handle)
    finally:
        os.close(handle)
