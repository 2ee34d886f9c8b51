"""``checkpoint.pt``: the state from which a stopped run continues, and the checks that it may.

A run of many processes writes folders instead, ``checkpoint-000100.dcp`` after 100 steps; see
``train.parallel.checkpoint``. Either kind is read by either kind of run.
"""

import dataclasses
import os
import re
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from aimamba.checkpoints.weights import check_archive
from aimamba.config import first_difference, flatten
from aimamba.documents import parse_toml
from aimamba.errors import CheckpointError, ConfigError
from aimamba.files import same_place, write_atomically
from aimamba.train.checkpoint_files import checkpoint_files, older_name, remove_superfluous

Resolve = Callable[[dict[str, Any]], Mapping[str, Any]]  # fills in the defaults of a recipe

_FORMAT = "aimamba training run 1"
_MAY_CHANGE = {
    "description",
    "data.workers",
    *(f"fit.{key}" for key in ("steps", "log_every", "evaluate_every", "sheet_every", "checkpoint_every")),
    *(f"fit.{key}" for key in ("checkpoints", "keep", "patience", "cuda_graph")),
    *(f"parallel.{key}" for key in ("replicate", "shard", "timeout")),
}
_PLACES = {"data.source", "init", "task.tokenizer", "task.text_encoder"}  # may be spelled in another way


@runtime_checkable
class Stateful(Protocol):
    """A part of a checkpoint: a module, an optimiser, an average."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Restore the state that ``state_dict`` returned."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after some steps.

    Attributes:
        step: Number of steps taken.
        seconds: Time they took.
        recipe: The resolved recipe, as TOML.
        parts: State of everything that training changes, by name: model, optimiser, average and so on.
        basis: Fingerprints of the inputs that the recipe only names, such as the tokenizer; see ``Task.basis``.
    """

    step: int
    seconds: float
    recipe: str
    parts: dict[str, dict[str, Any]]
    basis: dict[str, str] = dataclasses.field(default_factory=dict)


class Found(NamedTuple):
    """A checkpoint and the file that it was read from."""

    checkpoint: Checkpoint
    path: Path


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, count: int = 1, before: int | None = None) -> None:
    """Write ``checkpoint`` atomically: a reader finds the old file or the new one, always complete.

    The draft next to it has a fixed name, so a run that is killed while writing leaves at most one draft.

    Args:
        path: The file to write.
        checkpoint: What to write.
        count: Number of checkpoints to keep in the folder; older ones are called ``checkpoint-000100.pt``, after their
            number of steps.
        before: Number of steps of the good checkpoint that is in ``path``; None if there is none worth keeping.
    """
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    content = {"format": _FORMAT, **fields}
    if count > 1 and before is not None and before < checkpoint.step:
        older = path.with_name(older_name(before))
        older.unlink(missing_ok=True)
        try:
            os.link(path, older)  # so that there is a newest one at every moment
        except OSError:  # no hard links there
            path.rename(older)
    size = bytes_of_tensors(checkpoint.parts)
    write_atomically(path, lambda draft: torch.save(content, draft), draft=f"{path.name}.partial", size=size)
    remove_superfluous(path.parent, path, checkpoint.step, count)


def bytes_of_tensors(values: Any) -> int:
    """Return the bytes of the tensors in nested mappings and lists: a file of them has at least as many."""
    if isinstance(values, Mapping | list):
        return sum(map(bytes_of_tensors, values.values() if isinstance(values, Mapping) else values))
    return values.nbytes if isinstance(values, torch.Tensor) else 0


def read_checkpoint(path: Path, *, whole: bool = True, verify: bool = True) -> Checkpoint:
    """Load a checkpoint of either kind onto the CPU. No code in it is executed.

    Args:
        path: A file written by ``write_checkpoint``, or a folder written by many processes.
        whole: Whether to read all tensors. Otherwise a file is mapped into memory, which several processes share, and
            the shards of a folder are left out.
        verify: Whether to compare checksums.

    Raises:
        CheckpointError: It is truncated or damaged, or is not a checkpoint of a training run.
    """
    fix = f"delete {path.name} to start over, or give another --out"
    if path.is_dir() and path.suffix == ".dcp":
        # Takes seconds to import, and imports this module.
        from aimamba.train.parallel.checkpoint import fill_shards, read_sharded  # noqa: PLC0415

        saved = read_sharded(path, verify=verify)
        return fill_shards(saved, path) if whole else saved
    content = load_plain(path, fix, verify=verify, mapped=not whole)
    if content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a training run; {fix}")
    if (wrong := wrong_field(content)) is not None:
        raise CheckpointError(f"{path} is not a checkpoint of a training run: its {wrong}; {fix}")
    names = [field.name for field in dataclasses.fields(Checkpoint)]
    return Checkpoint(**{name: content[name] for name in names if name in content})  # 0.1.0 wrote no basis


def load_plain(path: Path, fix: str, *, verify: bool = True, mapped: bool = False) -> dict[str, Any]:
    """Load a file of ``torch.save`` onto the CPU. No code in it is executed.

    Args:
        path: The file.
        fix: Ends the message of an error.
        verify: Whether to compare checksums.
        mapped: Whether to map it into memory instead of reading it.

    Raises:
        CheckpointError: It is truncated or damaged, or holds something else than a mapping.
    """
    if not path.is_file():  # a pipe would keep a reader waiting
        raise CheckpointError(f"{path} is not a file; {fix}")
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums in it
            damaged = archive.testzip() if verify else None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}), perhaps cut short; {fix}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its record {damaged} does not match; {fix}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a truncated archive or pickle can fail in any way
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}), perhaps cut short; {fix}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint of a training run; {fix}")
    return content


def wrong_field(content: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the first field that is missing or has another type, or None."""
    kinds: dict[str, Any] = {"step": int, "seconds": (int, float), "recipe": str, "parts": dict}
    basis = content.get("basis", {})
    if not isinstance(basis, dict) or not all(isinstance(text, str) for pair in basis.items() for text in pair):
        return "field basis has another type"
    for name, kind in kinds.items():
        if not isinstance(value := content.get(name), kind) or isinstance(value, bool):
            return f"'{name}' is {str(value)[:40]!r}"
    if content["step"] < 0:
        return f"'step' is {content['step']}"
    try:
        tomllib.loads(content["recipe"])
    except (ValueError, RecursionError):
        return "'recipe' is not TOML"
    return None


def restore(checkpoint: Checkpoint, parts: Mapping[str, Stateful], path: Path) -> None:
    """Load the state in ``checkpoint`` into ``parts``.

    Args:
        checkpoint: The state of a run.
        parts: What to restore, by name.
        path: Where the checkpoint was read from, for the message.

    Raises:
        CheckpointError: The checkpoint has no state for one of the parts, or one that does not fit.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(checkpoint.parts[name])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            first = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"{path} does not fit this {name} ({first}); delete {path.name} to start over, or give another --out"
            ) from error


def find_checkpoint(out: Path, recipe: str, steps: int, resolve: Resolve, *, whole: bool = True) -> Found | None:
    """Return the checkpoint from which the run in ``out`` continues, see ``newest_checkpoint``.

    Args:
        out: Folder of the run.
        recipe: The recipe of the run, as TOML.
        steps: Number of steps to train in total.
        resolve: Fills in the defaults of a recipe.
        whole: See ``read_checkpoint``.

    Raises:
        ConfigError: The checkpoint belongs to another recipe, or has taken more than ``steps`` steps.
        CheckpointError: No checkpoint can be read, but there is one.
    """
    found = newest_checkpoint(out, whole=whole)
    if found is not None:
        check_same_recipe(found.checkpoint.recipe, recipe, out, resolve)
        if (taken := found.checkpoint.step) > steps:
            raise ConfigError(
                f"{out} has taken {taken} steps, more than fit.steps = {steps}; set it to at least {taken}, or give "
                "another --out"
            )
    return found


def newest_checkpoint(out: Path, *, whole: bool = True) -> Found | None:
    """Return the newest checkpoint in the folder of a run that can be read, or None if there is none yet.

    A line on stderr names those that cannot be read. ``whole`` is that of ``read_checkpoint``.

    Raises:
        CheckpointError: No checkpoint can be read, but there is one.
    """
    first_fault: CheckpointError | None = None
    for path in checkpoint_files(out):
        try:
            saved = read_checkpoint(path, whole=whole)
        except CheckpointError as fault:
            first_fault = first_fault or fault
            continue
        except OSError as error:  # of a disk, or permissions
            unread = CheckpointError(f"{path} cannot be read ({error.strerror or error}); restore or delete it")
            first_fault = first_fault or unread
            continue
        if first_fault is not None:
            fault_of = str(first_fault).partition("; ")[0]
            print(f"{fault_of}; going on from {path.name}, after step {saved.step}", file=sys.stderr)
        return Found(saved, path)
    if first_fault is not None:
        raise first_fault
    return None


def check_same_basis(before: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Check that the run in ``folder`` continues with the inputs that it began with.

    Args:
        before: Fingerprints in the checkpoint, by name.
        now: Fingerprints of the inputs given now. One that the checkpoint does not have is not checked.
        folder: Folder of the run, for the message.

    Raises:
        ConfigError: A fingerprint differs.
    """
    for name, fingerprint in now.items():
        if (was := before.get(name, fingerprint)) != fingerprint:
            raise ConfigError(
                f"{folder} holds a run on another {name} ({_shown(was)}) than the one given ({_shown(fingerprint)}); "
                "give that one, or another --out"
            )


def _shown(fingerprint: str) -> str:
    """Return a hash cut short, and any other text as it is."""
    return fingerprint[:12] if re.fullmatch("[0-9a-f]{64}", fingerprint) else fingerprint


def check_same_recipe(before: str, now: str, folder: Path, resolve: Resolve) -> None:
    """Check that a run is continued with the recipe that it began with.

    Recipes are compared with their defaults filled in, so a run of an older version, which did not know a setting yet,
    continues with its default. Paths that lead to the same place are equal. What does not change the steps may change:
    their number, the intervals, what is kept, the workers and the description.

    Args:
        before: The recipe that the run in ``folder`` began with, as TOML.
        now: The recipe given now, as TOML.
        folder: Folder of the run, for the message.
        resolve: Fills in the defaults of a recipe.

    Raises:
        ConfigError: Another setting differs, or this version cannot read ``before``.
    """
    try:
        old = resolve(parse_toml(before))
    except ConfigError as error:
        raise ConfigError(
            f"{folder} holds a run that this version cannot continue ({error}); give another --out"
        ) from error
    was, wanted = dict(flatten(old)), dict(flatten(resolve(parse_toml(now))))
    was |= {key: wanted[key] for key in _PLACES & was.keys() & wanted.keys() if same_place(was[key], wanted[key])}
    difference = first_difference(was, wanted, ignore=_MAY_CHANGE)
    if difference is not None:
        raise ConfigError(f"{folder} holds a run with {difference}; set it back, or give another --out")
