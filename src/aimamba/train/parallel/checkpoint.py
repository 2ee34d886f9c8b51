"""The checkpoint of a run of many processes: a folder in which each writes its shards, by PyTorch's Distributed
Checkpoint.

==============  ======================================================================================================
`*.distcp`      The shards of parameters, moments and averages. Any number of processes reads them in any layout.
`.metadata`     Where each shard is; see ``train.parallel.shards``.
`rest.pt`       Everything that is not sharded, as in ``checkpoint.pt``, and the names of what is.
`state.json`    Step, recipe and inputs, and the SHA-256 of every file and of itself. It is written last.
==============  ======================================================================================================

The folder has another name until it is whole and on the disk; only then older checkpoints are removed.
"""

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file, sum_of_values
from aimamba.documents import read_json
from aimamba.errors import CheckpointError
from aimamba.files import named, remove_tree, sync_folder, write_atomically
from aimamba.train.checkpoint import Checkpoint, Found, Stateful, bytes_of_tensors, load_plain, wrong_field
from aimamba.train.checkpoint_files import MANIFEST, SHARDED_FORMAT, demote_single, remove_superfluous, sharded_name
from aimamba.train.parallel.shards import METADATA, ShardReader
from aimamba.train.parallel.spread import spread

Place = tuple[str | int, ...]
"""The keys that lead to a tensor in the parts of a checkpoint."""

_DRAFT = "checkpoint.dcp.partial"
_REST = "rest.pt"


@dataclass(frozen=True, kw_only=True)
class ShardedCheckpoint(Checkpoint):
    """A checkpoint without its shards.

    Attributes:
        missing: Where the sharded tensors belong in ``parts``.
    """

    missing: tuple[Place, ...] = ()


def read_sharded(folder: Path, *, verify: bool = True) -> ShardedCheckpoint:
    """Read everything but the shards. No code in the files is executed.

    Args:
        folder: The checkpoint.
        verify: Whether to compare every file with its checksum.

    Raises:
        CheckpointError: A file is missing, damaged, or not of such a checkpoint.
    """
    fix = f"delete {folder.name} to start over, or give another --out"
    try:
        values = read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({type(error).__name__}); {fix}") from error
    if (
        not isinstance(values, dict)
        or values.get("format") != SHARDED_FORMAT
        or not isinstance(values.get("files"), dict)
    ):
        raise CheckpointError(f"{folder} is not a checkpoint of a training run; {fix}")
    files = values["files"]
    wrong = values.get(SUMS_KEY) != sum_of_values(values)
    if wrong or any(not isinstance(name, str) or Path(name).name != name for name in files):
        raise CheckpointError(f"{folder} is damaged: the checksum of {MANIFEST} does not match; {fix}")
    unlisted = [path.name for path in folder.glob("*.distcp") if path.name not in files]
    for name in [name for name in (_REST, METADATA, *unlisted) if name not in files]:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} does not list {name}; {fix}")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is damaged: {name} is missing; {fix}")
        if verify and sum_of_file(folder / name) != expected:
            raise CheckpointError(f"{folder} is damaged: the checksum of {name} does not match; {fix}")
    rest = load_plain(folder / _REST, fix)
    content = {**values, "parts": rest.get("parts")}
    places = rest.get("missing")
    fault = wrong_field(content)
    if (
        fault is not None
        or not isinstance(places, list)
        or not all(isinstance(place, list) and place for place in places)
    ):
        raise CheckpointError(f"{folder} is not a checkpoint of a training run: its {fault or _REST}; {fix}")
    names = [name for name in ("step", "seconds", "recipe", "parts", "basis") if name in content]
    return ShardedCheckpoint(**{name: content[name] for name in names}, missing=tuple(map(tuple, places)))


def fill_shards(
    saved: ShardedCheckpoint, folder: Path, like: Callable[[Place, torch.Size], DTensor | None] = lambda *_: None
) -> Checkpoint:
    """Return the checkpoint with its sharded tensors.

    Args:
        saved: From ``read_sharded``.
        folder: Where it was read from.
        like: The tensor of this run that a tensor's layout is taken from, by place and shape; without one it is read
            whole, onto the CPU.

    Raises:
        CheckpointError: The shards do not hold these tensors.
    """
    fix = f"delete {folder.name} to start over, or give another --out"
    try:
        reader = ShardReader(folder)
        outline = reader.read_metadata().state_dict_metadata
        targets = {}
        for place in saved.missing:
            entry = outline[_key(place)]
            if not isinstance(entry, TensorStorageMetadata):
                raise ValueError("an entry is not a tensor")
            if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != entry.size.numel():
                raise ValueError(f"the shards do not make up all of {_key(place)}")
            template = like(place, entry.size)
            targets[_key(place)] = (
                torch.empty(entry.size, dtype=entry.properties.dtype)
                if template is None
                else torch.empty_like(template.detach(), dtype=entry.properties.dtype)
            )
        with warnings.catch_warnings(action="ignore"):  # that this is one process
            load(targets, storage_reader=reader, no_dist=True)
        for place in saved.missing:
            _put(saved.parts, place, targets[_key(place)])
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:  # the second is no Exception; damage can fail in any way
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{folder} cannot be read ({type(error).__name__}: {first}); {fix}") from error
    names = ("step", "seconds", "recipe", "parts", "basis")
    return Checkpoint(**{name: getattr(saved, name) for name in names})


def laid_out(found: Found, parts: Mapping[str, Stateful]) -> Checkpoint:
    """Return a checkpoint of either kind with its tensors laid out as those of ``parts``.

    Raises:
        CheckpointError: A tensor has another shape, or the shards cannot be read.
    """
    saved, like = found.checkpoint, _layouts(parts)
    if isinstance(saved, ShardedCheckpoint):
        return fill_shards(saved, found.path, like)
    for place, tensor in list(tensors_in(saved.parts)):
        if (template := like(place, tensor.shape)) is not None:
            _put(saved.parts, place, spread(tensor, template))
    return saved


def _layouts(parts: Mapping[str, Stateful]) -> Callable[[Place, torch.Size], DTensor | None]:
    known: dict[Place, Tensor] = {}
    parameters: dict[tuple[str, int], Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, Optimizer):
            listed = (parameter for group in part.param_groups for parameter in group["params"])
            parameters |= {(name, number): parameter for number, parameter in enumerate(listed)}
        else:
            known |= dict(tensors_in(part.state_dict(), (name,)))

    def like(place: Place, shape: torch.Size) -> DTensor | None:
        found = known.get(place)
        if found is None and len(place) == 4 and place[1] == "state":
            found = parameters.get((cast(str, place[0]), cast(int, place[2])))
            if found is not None and found.shape != shape:  # the number of steps
                return None
        if not isinstance(found, DTensor):
            return None
        if found.shape != shape:
            raise CheckpointError(f"{_key(place)} has the shape {tuple(shape)}, and the model {tuple(found.shape)}")
        return found

    return like


def tensors_in(values: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """Yield every tensor in nested mappings with the keys that lead to it."""
    if isinstance(values, Tensor):
        yield place, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from tensors_in(value, (*place, key))


def _put(values: dict[Any, Any], place: Place, tensor: Tensor | None) -> None:
    for key in place[:-1]:
        values = values[key]
    values[place[-1]] = tensor


def _key(place: Place) -> str:
    return "/".join(map(str, place))


def _copied(values: Any) -> Any:
    """Return nested mappings with their tensors copied to main memory; a DTensor leaves a gap."""
    if isinstance(values, DTensor):
        return None
    if isinstance(values, Tensor):
        return values.detach().to("cpu", copy=True)
    return {key: _copied(value) for key, value in values.items()} if isinstance(values, Mapping) else values


class ShardedWriter:
    """Writes checkpoints in the background, in every process; each method is called by all of them."""

    def __init__(self, out: Path, *, count: int) -> None:
        """Prepare.

        Args:
            out: Folder of the run.
            count: Number of checkpoints to keep.
        """
        self._out, self._count = out, count
        self._group = dist.new_group(backend="gloo")  # of its own, because it is used beside the training
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written; ``finish`` raises the reason."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def begin(self, step: int, seconds: float, recipe: str, basis: dict[str, str], parts: dict[str, Any]) -> None:
        """Copy the state to main memory and begin to write it; the arguments are those of ``Checkpoint``."""
        self.finish()
        draft = self._out / _DRAFT
        if dist.get_rank() == 0:
            remove_tree(draft)
            draft.mkdir()
        dist.barrier(group=self._group)
        tensors = {place: tensor for place, tensor in tensors_in(parts) if isinstance(tensor, DTensor)}
        best = parts.pop("best", None)  # its tensors are never changed
        rest = {"parts": _copied(parts) | ({} if best is None else {"best": best}), "missing": list(map(list, tensors))}
        header = {"format": SHARDED_FORMAT, "step": step, "seconds": seconds, "recipe": recipe, "basis": basis}
        written = async_save(
            {_key(place): tensor.detach() for place, tensor in tensors.items()},
            storage_writer=FileSystemWriter(draft),
            process_group=self._group,
        )
        room = bytes_of_tensors([rest["parts"], tensors])
        self._pending = self._thread.submit(self._commit, draft, header, rest, room, cast("Future[Any]", written))

    def finish(self) -> None:
        """Wait until the checkpoint that was begun is whole.

        Raises:
            OSError: The disk is full, or writing is not permitted.
            CheckpointError: It could not be written for another reason.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _commit(
        self, draft: Path, header: dict[str, Any], rest: dict[str, Any], room: int, written: "Future[Any]"
    ) -> None:
        """Wait for the shards of all processes, add the rest, and give the folder its name; on a failure remove it."""
        try:
            self._complete(draft, header, rest, written)
        except Exception as error:
            if dist.get_rank() == 0:
                remove_tree(draft)
            if isinstance(error, OSError) and error.errno is not None:
                raise named(OSError(error.errno, os.strerror(error.errno)), draft, draft, room) from error
            raise

    def _complete(self, draft: Path, header: dict[str, Any], rest: dict[str, Any], written: "Future[Any]") -> None:
        is_first = dist.get_rank() == 0
        fault: list[Any] = [None]
        try:
            written.result()
        except CheckpointException as error:  # the same in all processes
            raise _reason(error, draft) from error
        sums = {path.name: sum_of_file(path) for path in draft.glob(f"__{dist.get_rank()}_*.distcp")}
        listed: list[Any] | None = [None] * dist.get_world_size() if is_first else None
        dist.gather_object(sums, listed, group=self._group)
        if is_first:
            try:
                assert listed is not None
                self._name(draft, header, rest, {name: value for one in listed for name, value in one.items()})
            except Exception as error:
                fault = [(getattr(error, "errno", None), getattr(error, "strerror", None) or str(error))]
        dist.broadcast_object_list(fault, group=self._group)
        if fault[0] is not None:
            number, text = fault[0]
            if number is not None:
                raise OSError(number, text, str(draft))
            raise CheckpointError(f"{draft} could not be written ({text})")

    def _name(self, draft: Path, header: dict[str, Any], rest: dict[str, Any], sums: dict[str, str]) -> None:
        write_atomically(draft / _REST, lambda path: torch.save(rest, path))
        sums |= {name: sum_of_file(draft / name) for name in (_REST, METADATA)}
        values = {**header, "files": sums}
        text = json.dumps({**values, SUMS_KEY: sum_of_values(values)}, indent=1) + "\n"
        write_atomically(draft / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
        sync_folder(draft)
        step, folder = header["step"], self._out / sharded_name(header["step"])
        if folder.exists():  # of a step that is taken again
            remove_tree(self._out / f"{_DRAFT}.old")
            folder.rename(self._out / f"{_DRAFT}.old")
        draft.rename(folder)
        sync_folder(self._out)
        shutil.rmtree(self._out / f"{_DRAFT}.old", ignore_errors=True)
        demote_single(self._out, step, keep=self._count > 1)
        remove_superfluous(self._out, folder, step, self._count)


def _reason(error: CheckpointException, draft: Path) -> Exception:
    """Return what is behind the failure of one of the processes."""
    causes: list[Any] = [failure[0] for failure in error.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            return OSError(cause.errno, cause.strerror, str(draft))
    first = " ".join(str(causes[0] if causes else error).split())[:160]
    return CheckpointError(f"{draft} could not be written ({first})")


def find_whole(path: Path) -> Checkpoint:
    """Read a sharded checkpoint with all its tensors whole, for a run of one process."""
    return fill_shards(read_sharded(path), path)
