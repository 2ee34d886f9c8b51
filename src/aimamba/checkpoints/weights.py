"""Read files of weights: names, shapes and dtypes from the header, tensors when they are needed."""

import argparse
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aimamba.errors import CheckpointError, is_unicode

PICKLED = (".pt", ".pth", ".bin")

NESTED = ("ema", "model", "state_dict")  # in the order of LlamaGen's vq_demo.py and reconstruction_vq_ddp.py
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile

_ALIGNMENT = 64  # bytes, of memory that torch allocates
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class WeightsFile:
    """A ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file of weights.

    Attributes:
        path: Where the file is.
    """

    def __init__(self, path: Path, nested: str | None = None) -> None:
        """Take the file at ``path``; nothing is read yet.

        Args:
            path: The file.
            nested: Which of several sets of weights in a pickle to read: ``ema``, ``model`` or ``state_dict``. By
                default the first of these that is there, as LlamaGen does.

        Raises:
            CheckpointError: The file's suffix is none of the four, or ``nested`` is none of the three.
        """
        if nested is not None and nested not in NESTED:
            raise CheckpointError(f"expected the weights {', '.join(map(repr, NESTED))}, got {nested[:40]!r}")
        if nested is not None and path.suffix not in PICKLED:
            raise CheckpointError(f"{path}: holds one set of weights, so there is no {nested!r} to choose")
        self._nested = nested
        if path.suffix not in (".safetensors", *PICKLED):
            raise CheckpointError(f"{path}: expected a .safetensors, .pt, .pth or .bin file")
        self.path = path
        self._unpickled: dict[str, Tensor] = {}  # a pickle's tensors that no call of ``tensors`` has returned yet

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """Every tensor of the file on the meta device: its shape and dtype without its values.

        Of a ``.safetensors`` file only the header is read. The others have no header: they are read whole, and their
        tensors are kept for ``tensors``.

        Raises:
            CheckpointError: The file is missing, empty, truncated or not a state dict.
        """
        if self.path.suffix != ".safetensors":
            self._unpickled = _unpickle(self.path, self._nested)
            return {key: tensor.to("meta") for key, tensor in self._unpickled.items()}
        with _readable(self.path) as name, safe_open(name, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return {
                key: torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype(), torch.int64), device="meta")
                for key, part in slices.items()
            }

    def tensors(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Read these tensors and no others, each at an address where torch would have put it.

        No two calls return the same memory: a pickle is read again for tensors that were returned before.

        Raises:
            CheckpointError: The file is missing, empty, truncated or not a state dict.
        """
        keys = list(keys)
        if self.path.suffix != ".safetensors":
            if not self._unpickled.keys() >= set(keys):
                self._unpickled = _unpickle(self.path, self._nested)
            return {key: _aligned(self._unpickled.pop(key)) for key in keys}
        with _readable(self.path) as name, safe_open(name, framework="pt") as file:
            return {key: _aligned(file.get_tensor(key)) for key in keys}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file of weights.

    Raises:
        CheckpointError: The file is missing, empty, truncated or not a state dict, or its suffix is unknown.
    """
    file = WeightsFile(path)
    return file.tensors(file.outline)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Turn a failure to read ``path`` into a ``CheckpointError``. Yields a name of the file that safetensors takes."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; check the path")
    if not path.is_file():  # a pipe would keep a reader waiting
        raise CheckpointError(f"{path}: this is not a file; check the path")
    try:
        with path.open("rb") as file:  # safetensors says that what it may not read is not there
            yield path if is_unicode(str(path)) else Path(f"/dev/fd/{file.fileno()}")  # and takes no bytes but UTF-8
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise CheckpointError(f"{path}: {error.strerror}; check the path and its permissions") from error
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: cannot be read ({size:,} bytes; empty, truncated or not a checkpoint); fetch or save it again"
        ) from error


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor at an address that is a multiple of ``_ALIGNMENT``, copied if it has to be.

    Matrix products of CPU libraries may round otherwise elsewhere, and in a file tensors begin anywhere: a loaded model
    would not compute what the saved one did.
    """
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def check_archive(path: Path) -> None:
    """Check that a file of ``torch.save`` holds its records as they are: none of them grows when it is read.

    Files of old versions of torch are no archives, and pass.

    Raises:
        ValueError: A record is compressed, or records are longer than the file.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, which torch.save never does")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its records are longer than the file")


def _unpickle(path: Path, wanted: str | None) -> dict[str, Tensor]:
    with _readable(path):
        try:
            check_archive(path)
            # torch warns about odd pickles before it fails on them. LlamaGen's training checkpoints hold their command
            # line as a Namespace: a plain object, in which nothing executes.
            allowed = torch.serialization.safe_globals([argparse.Namespace])
            with warnings.catch_warnings(action="ignore"), allowed:
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are not a pickle can fail in any way
            raise ValueError from error
    nested = [key for key in NESTED if isinstance(content, dict) and isinstance(content.get(key), dict)]
    if wanted is not None and wanted not in nested:
        there = ", ".join(map(repr, nested)) or "one set of weights without a name"
        raise CheckpointError(f"{path}: has no weights {wanted!r}; it has {there}")
    if nested:
        chosen = wanted or nested[0]
        content = content[chosen]
        if others := " and ".join(repr(key) for key in nested if key != chosen):
            choice = "" if wanted else " ('aimamba convert --weights' chooses another)"
            print(f"{path}: read {chosen!r}, which stands beside {others}{choice}", file=sys.stderr)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a state dict of tensors, flat or under {', '.join(map(repr, NESTED))}")
    return _unwrapped(content)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that every name has because the model was wrapped when it was saved."""
    while tensors and (prefix := next((p for p in _WRAPPERS if all(str(key).startswith(p) for key in tensors)), None)):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
