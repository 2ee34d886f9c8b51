"""Find image files, read their headers and decode them; every fault of a file is raised as a ``DataError``."""

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from aimamba.data.transforms import to_rgb
from aimamba.errors import DataError, suggest
from aimamba.files import expand_home

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

_HUGE = 1 << 26  # pixels, beyond which decoding at full size takes more than 512 MB
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

# What Pillow raises on damaged files.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_image(path: str | os.PathLike[str], *, least: int | None = None) -> Image.Image:
    """Decode a file into upright RGB with ``transforms.to_rgb``; of an animation the first frame.

    Args:
        path: The file.
        least: The shorter side that is needed, in pixels. A JPEG of more than 64 million pixels is then decoded at a
            half, a quarter or an eighth of its size, as far as it keeps that side.

    Raises:
        DataError: The file is missing, empty, truncated or not an image; the message names it.
    """
    try:
        _require_file(path)
        with Image.open(path, formats=_FORMATS) as image:
            if least is not None and image.width * image.height > _HUGE:
                image.draft("RGB", (least, least))
            return to_rgb(image)
    except _UNREADABLE as error:
        raise DataError(_fault(path, error)) from error


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """Return the image files in a folder and all folders below it, ordered by name; for a file, the file itself.

    Raises:
        DataError: There is no such file or folder, or it cannot be listed.
    """
    path = expand_home(path)
    if path.is_dir():
        return [path / name for name in list_images(path)]
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder{suggest_sibling(path)}")
    return [path]


def list_images(folder: Path) -> list[str]:
    """Return the paths of the image files below a folder, relative to it, with ``/`` between folders.

    They are ordered by name at every level. Hidden files and folders are ignored; links are followed, but not in a
    circle.

    Raises:
        DataError: A folder cannot be listed.
    """
    try:
        return list(_walk(folder, "", ()))
    except OSError as error:
        raise DataError(_fault(error.filename or folder, error)) from error


def read_sizes(paths: Sequence[Path]) -> list[tuple[int, int] | DataError]:
    """Read the headers of many files, several at a time.

    Returns:
        For each file its width and height in pixels, or a ``DataError`` with what is wrong with it.
    """
    Image.init()  # loads the formats once, before the threads need them
    blocks = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(min(8, max(1, len(blocks)))) as pool:
        return [
            size for sizes in pool.map(lambda block: [_read_size(path) for path in block], blocks) for size in sizes
        ]


def is_image_name(name: str) -> bool:
    """Return whether a file's name is that of an image and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def suggest_sibling(path: Path) -> str:
    """Suggest a file or folder beside ``path`` with a similar name; empty if there is none."""
    return suggest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, here))
        elif is_image_name(entry.name):
            yield f"{prefix}{entry.name}"


def _read_size(path: Path) -> tuple[int, int] | DataError:
    try:
        _require_file(path)
        with Image.open(path, formats=_FORMATS) as image:
            return image.size if min(image.size) > 0 else DataError(f"{path}: the image has no pixels")
    except _UNREADABLE as error:
        return DataError(_fault(path, error))


def _require_file(path: str | os.PathLike[str]) -> None:
    """Raise an ``OSError`` for a pipe, socket or device, which would keep a reader waiting."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError("this is a pipe, socket or device, not a file: remove it")


def _fault(path: str | os.PathLike[str], error: BaseException) -> str:
    """Describe in one line what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.getsize(path) == 0
        reason = "the file is empty (0 bytes)" if empty else "this is not an image in a known format"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower()
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return f"{os.fspath(path)}: {reason}"
