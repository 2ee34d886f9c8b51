"""Find a checkpoint: a path, the name of a packaged model, or the id of a repository on the hub."""

from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from aimamba.checkpoints.adapter import ADAPTER_FILE
from aimamba.checkpoints.weights import PICKLED, first_line
from aimamba.errors import CheckpointError, suggest

CONFIG_FILE, WEIGHTS_FILE, PIPELINE_FILE = "config.json", "model.safetensors", "pipeline.json"

PICKLE_FILE = "pytorch_model.bin"  # what older tools wrote in the place of WEIGHTS_FILE
_RUN_RESULT = "model"  # the folder in which a training run saves its result
_HUB_FILES = ["*.json", "*.safetensors"]


def locate(source: str | Path) -> Path:
    """Return the file or folder that ``source`` names, after downloading it if it is on the hub.

    A path that exists takes precedence over the name of a packaged model, and that over a hub id.

    Raises:
        CheckpointError: There is no such path, no such packaged model, and no such repository on the hub.
    """
    path = Path(source)
    if path.exists():
        return path
    return packaged_models().get(str(source)) or _download(str(source))


def find_part(path: Path, part: str) -> Path:
    """Return the file or folder inside ``path`` that holds one part of a model.

    Args:
        path: A file of weights, or the folder of a saved model, a saved pipeline or a training run.
        part: ``generator`` or ``tokenizer``.

    Raises:
        CheckpointError: The folder has no weights in any of the known places.
    """
    if path.is_file():
        return path
    for folder in (path, path / part, path / _RUN_RESULT, path / _RUN_RESULT / part):
        if weights_in(folder) is not None:
            return folder
    raise CheckpointError(
        f"{path}: no {WEIGHTS_FILE} there, in {part}/ or in {_RUN_RESULT}/; "
        "give the folder of a saved model or of a finished training run"
    )


def weights_in(folder: Path) -> Path | None:
    """Return the file of weights in the folder of a model: safetensors, a pickle or an adapter; None if it has none."""
    names = WEIGHTS_FILE, PICKLE_FILE, ADAPTER_FILE
    return next((folder / name for name in names if (folder / name).is_file()), None)


def packaged_models() -> dict[str, Path]:
    """Return the trained models that come with the package: their names and folders."""
    assets = Path(str(files("aimamba").joinpath("assets")))
    return {path.name: path for path in sorted(assets.iterdir()) if path.is_dir() and not path.name.startswith("_")}


def _download(source: str) -> Path:
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith(("/", ".safetensors", *PICKLED)):
        raise CheckpointError(
            f"{source}: no such file or folder{suggest(source, packaged_models())}; a hub id reads 'owner/name'"
        )
    try:
        # The user chooses the repository, and means its newest version; no code in it is run.
        folder = snapshot_download(source, allow_patterns=_HUB_FILES)  # nosec B615
        return Path(folder)
    except HFValidationError as error:
        raise CheckpointError(f"{source}: no such folder, and not a hub id: {first_line(error)}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{source}: no such folder, and the hub cannot be reached to look it up there") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{source}: no such folder, and the download from the hub failed: {first_line(error)}"
        ) from error
