"""Of which images a run keeps the codes in its folder, so that it continues with those and no others."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from aimamba.config import check, from_mapping, to_mapping
from aimamba.data.files import list_images
from aimamba.errors import DataError
from aimamba.files import expand_home, same_place, write_atomically
from aimamba.train.recipe import DataConfig
from aimamba.train.toml import read_toml, to_toml

_SETTINGS = "data.toml"
_LISTING = "images.json"


def describe(data: DataConfig) -> dict[str, str]:
    """Return the files that describe images, by name. Called before they are read: what comes later is a change."""
    return {_SETTINGS: to_toml(to_mapping(data)), _LISTING: json.dumps(_listing(data)) + "\n"}


def write_description(folder: Path, described: dict[str, str]) -> None:
    """Write the files next to the codes."""
    for name, text in described.items():
        write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))


def holds_codes_of(folder: Path, data: DataConfig) -> bool:
    """Return whether a run has stored the codes of these images in ``folder``.

    Raises:
        ConfigError: The folder is not a run's, or holds the codes of other images.
    """
    if not folder.exists():
        return False
    note = folder / _SETTINGS
    check(note.exists(), f"{folder} was not made by a training run and would be replaced; give another --out")
    before, now = from_mapping(DataConfig, read_toml(note), where=str(note)).images(), data.images()
    sources = before.pop("source"), now.pop("source")
    check(
        before == now and same_place(*sources),
        f"{folder} holds the codes of other images; remove it, or give another --out",
    )
    return True


def changed_since(folder: Path, data: DataConfig) -> str | None:
    """Return what to say if files were added to a folder of images, or removed, since a run encoded it.

    A run of an earlier version noted no names, and a folder that is gone is not needed any more.
    """
    try:
        before = json.loads((folder / _LISTING).read_text(encoding="utf-8"))
        now = _listing(data)
    except (OSError, ValueError, DataError):
        return None
    if before is None or now is None or before == now:
        return None
    return (
        f"{data.source} has changed since this run encoded it ({before['images']:,} image files then, "
        f"{now['images']:,} now): the run goes on with the codes of then; for the images of now give another --out"
    )


def _listing(data: DataConfig) -> dict[str, Any] | None:
    """Return how many image files a folder has, and a hash of their names; None of what is no folder."""
    folder = expand_home(data.source)
    if not folder.is_dir():
        return None
    names = list_images(folder)
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return {"images": len(names), "sha256": digest}
