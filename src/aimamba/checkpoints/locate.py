"""Find a checkpoint: a path, the name of a packaged model, or the id of a repository on the hub."""

from importlib.resources import files
from pathlib import Path

from aimamba.checkpoints.adapter import ADAPTER_FILE
from aimamba.checkpoints.hub import Hub, download
from aimamba.checkpoints.weights import PICKLED, first_line
from aimamba.errors import CheckpointError, suggest

CONFIG_FILE, WEIGHTS_FILE, PIPELINE_FILE = "config.json", "model.safetensors", "pipeline.json"
VOCABULARY_FILE = "vocabulary.json"  # of captions, beside PIPELINE_FILE

PICKLE_FILE = "pytorch_model.bin"  # what older tools wrote in the place of WEIGHTS_FILE
_RUN_RESULT = "model"  # the folder in which a training run saves its result


def locate(source: str | Path, hub: Hub | None = None) -> Path:
    """Return the file or folder that ``source`` names, after downloading it if it is on the hub.

    A path that exists takes precedence over the name of a packaged model, and that over a hub id.

    Args:
        source: A path, the name of a packaged model, or a hub id.
        hub: Which version of a repository and which folder in it.

    Raises:
        CheckpointError: There is no such path or folder in it, no such packaged model, and no such repository on the
            hub; or a revision is asked for of what is not on the hub.
    """
    if not isinstance(source, str | Path):
        raise CheckpointError(f"a model is a path, a name or a hub id, got {type(source).__name__}")
    if source == "":  # as a path it would be the present folder
        raise CheckpointError("a model is a path, a name or a hub id, got an empty text")
    hub, path = hub or Hub(), Path(source)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise CheckpointError(f"{str(source)[:80]!r}: no such file or folder ({first_line(error)[:60]})") from error
    here = path if exists else packaged_models().get(str(source))
    if here is not None and hub.revision is not None:
        raise CheckpointError(f"{source}: is on this machine and has no revision {hub.revision}; leave revision out")
    found = here or _from_hub(str(source), hub)
    if hub.subfolder is None:
        return found
    if not (found / hub.subfolder).is_dir():
        raise CheckpointError(f"{source}: has no folder {hub.subfolder}; check subfolder")
    return found / hub.subfolder


def is_here(source: str) -> bool:
    """Return whether ``source`` names a path that exists or a packaged model, so that nothing is downloaded."""
    try:
        return source != "" and (Path(source).exists() or source in packaged_models())
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _from_hub(source: str, hub: Hub) -> Path:
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith(("/", ".safetensors", *PICKLED)):
        raise CheckpointError(
            f"{source}: no such file or folder{suggest(source, packaged_models())}; a hub id reads 'owner/name'"
        )
    return download(source, hub)


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
