"""Read the shards of Distributed Checkpoint without executing what may be hidden in their description.

PyTorch reads the description with ``pickle``, which calls whatever a file names. Here it may name the records of which
a description is made, and nothing else.
"""

import enum
import math
import pickle  # nosec B403
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

METADATA = ".metadata"

_ROOM = 1 << 24  # bytes that headers of shards may add to their tensors


class ShardReader(FileSystemReader):
    """Reads shards, and their description without executing what may be hidden in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the description.

        Raises:
            ValueError: It is not one, names files outside the folder, or tensors that the files cannot hold.
        """
        folder = Path(self.path)
        with (folder / METADATA).open("rb") as file:
            metadata = _Plain(file).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError("not a description of shards")
        entries = [entry for entry in metadata.state_dict_metadata.values() if isinstance(entry, TensorStorageMetadata)]
        if len(entries) < len(metadata.state_dict_metadata):
            raise ValueError("it holds something else than tensors")
        for stored in metadata.storage_data.values():
            if Path(stored.relative_path).name != stored.relative_path:
                raise ValueError("a shard lies outside the folder")
        sizes = [math.prod(entry.size) * entry.properties.dtype.itemsize for entry in entries]
        if sum(sizes) > sum(path.stat().st_size for path in folder.iterdir()) + _ROOM:
            raise ValueError("its tensors are larger than its files")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Plain(pickle.Unpickler):
    """Reads the classes of a description of shards, and no others, so that nothing in a file is executed."""

    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _OTHERS = (
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of the list.

        Raises:
            UnpicklingError: It is another one.
        """
        ours = module in self._MODULES and "." not in name
        if (module, name) in self._OTHERS:
            return partial(super().find_class(module, name))  # which a file cannot use to change the class itself
        if ours and _is_record(module, name):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _is_record(module: str, name: str) -> bool:
    """Return whether a name is that of a dataclass or enumeration defined in the module."""
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, type) or found.__module__ != module:
        return False
    return hasattr(found, "__dataclass_fields__") or issubclass(found, enum.Enum)
