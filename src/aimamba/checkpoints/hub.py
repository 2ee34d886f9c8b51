"""Loading and saving of models: a strict ``config.json`` beside a ``model.safetensors``, on disk or on the hub."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aimamba.errors import CheckpointError, suggest

Config = TypeVar("Config")

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_PICKLED = (".pt", ".pth", ".bin")
_RUN_RESULT = "model"  # where a training run keeps what it made
_HUB_FILES = ["*.json", "*.safetensors"]


def find(source: str | Path, part: str) -> Path:
    """Find the file or folder that holds ``part`` ("generator" or "tokenizer") of a model, downloading if need be.

    A path that exists goes before the name of a packaged model, and that before a hub id.

    Raises:
        CheckpointError: There is no such path, no such packaged model, and no such repository on the hub.
    """
    path = Path(source)
    if not path.exists():
        path = packaged_models().get(str(source)) or _download(str(source))
    if path.is_file():
        return path
    for folder in (path, path / part, path / _RUN_RESULT, path / _RUN_RESULT / part):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    raise CheckpointError(
        f"{path}: no {WEIGHTS_FILE} there, in {part}/ or in {_RUN_RESULT}/; "
        "give the folder of a saved model or of a finished training run"
    )


def packaged_models() -> dict[str, Path]:
    """Name the trained models that come with the package, and say where they are."""
    assets = Path(str(files("aimamba").joinpath("assets")))
    return {path.name: path for path in sorted(assets.iterdir()) if path.is_dir() and not path.name.startswith("_")}


def _download(source: str) -> Path:
    if (
        source.count("/") != 1
        or source.startswith((".", "/", "~"))
        or source.endswith(("/", ".safetensors", *_PICKLED))
    ):
        raise CheckpointError(
            f"{source}: no such file or folder{suggest(source, packaged_models())}; a hub id reads 'owner/name'"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise CheckpointError(f"{source}: no such folder, and not a hub id: {_first_line(error)}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{source}: no such folder, and the hub cannot be reached to look it up there") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{source}: no such folder, and not to be had from the hub: {_first_line(error)}"
        ) from error


def read_checkpoint(place: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Read config and tensors from a folder or a single file of weights; the config may be absent.

    Raises:
        CheckpointError: A file is missing, empty, truncated or not what its name says.
    """
    weights = place / WEIGHTS_FILE if place.is_dir() else place
    config_path = weights.parent / CONFIG_FILE
    config = None
    if place.is_dir() or (config_path.is_file() and weights.name == WEIGHTS_FILE):
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{config_path}: missing; a model folder needs it beside {WEIGHTS_FILE}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{config_path}: not valid JSON ({_first_line(error)})") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{config_path}: expected a JSON object, got {type(config).__name__}")
    return config, _read_tensors(weights)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    damaged = f"{path}: cannot be read ({size:,} bytes; empty, truncated or not a checkpoint); fetch or save it again"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(damaged) from error
    if path.suffix not in _PICKLED:
        raise CheckpointError(f"{path}: expected a .safetensors, .pt, .pth or .bin file")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of odd pickles before it fails on them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can fail in any way
        raise CheckpointError(damaged) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a state dict of tensors, flat or under 'model'")
    return content


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Give every parameter its tensor; the model may stand on the meta device.

    Raises:
        CheckpointError: Keys are missing, left over or of another shape; the first few of each are named.
    """
    wanted = model.state_dict()
    faults = {
        "missing": wanted.keys() - tensors.keys(),
        "left over": tensors.keys() - wanted.keys(),
        "of another shape": {k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape},
        "not of floating point": {key for key in wanted if key in tensors and not tensors[key].is_floating_point()},
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {fault} ({_first_few(keys)})" for fault, keys in faults.items() if keys)
        raise CheckpointError(f"{where}: weights do not fit the model: {listed}")
    model.load_state_dict(dict(tensors), assign=True)


def _first_few(keys: Iterable[str], count: int = 3) -> str:
    ordered = sorted(keys)
    return ", ".join(ordered[:count]) + (", ..." if len(ordered) > count else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _named(place: Path) -> Iterator[None]:
    """Put the file's name before the message of a ``CheckpointError``."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
