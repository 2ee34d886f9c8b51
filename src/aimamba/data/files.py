"""Find image files, read their headers and decode them; every fault of a file is raised as a ``DataError``."""

import io
import os
import re
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image, UnidentifiedImageError, features

from aimamba.data.transforms import to_rgb
from aimamba.errors import DataError, suggest
from aimamba.files import expand_home

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Of the formats that every Pillow reads; ``readable_suffixes`` has those of this machine."""

KINDS = "PNG, JPEG, WebP, BMP, GIF, TIFF, and AVIF and HEIC where they can be read"

_HUGE = 1 << 26  # pixels, beyond which decoding at full size takes more than 512 MB
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_HEIC, _AVIF = frozenset({".heic", ".heif", ".hif"}), frozenset({".avif"})
_OTHERS = frozenset({".jxl", ".jp2", ".svg", ".psd", ".tga", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw"})
_REMEDIES = {"HEIC": "pip install 'aimamba[heif]' reads it", "AVIF": "Pillow 11.3 or newer reads it"}
_SHEET = re.compile(r"sheet(-page-\d+)?\.png")  # as aimamba calls the contact sheets that it writes beside images


@runtime_checkable
class SeekableFile(Protocol):
    """What Pillow needs of a file."""

    def read(self, count: int = -1, /) -> bytes:
        """Return the next bytes."""

    def seek(self, place: int, whence: int = 0, /) -> int:
        """Go to a place."""

    def tell(self) -> int:
        """Return the place."""


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
        require_file(path)
        with Image.open(path, formats=_formats()) as image:
            if least is not None and image.width * image.height > _HUGE:
                image.draft("RGB", (least, least))
            return to_rgb(image)
    except _UNREADABLE as error:
        raise DataError(_fault(path, error)) from error


def decode_image(content: bytes, *, most_pixels: int) -> Image.Image:
    """Decode an image file in memory as ``open_image`` does.

    Args:
        content: The file.
        most_pixels: Pixels it may have; what its header says is checked before any is decoded.

    Raises:
        DataError: It is not an image, is damaged, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            if image.width * image.height > most_pixels:
                raise DataError(f"the image has {image.width} x {image.height} pixels, more than {most_pixels:,}")
            return to_rgb(image)
    except UnidentifiedImageError:
        raise DataError(f"this is not an image in a known format ({KINDS})") from None
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"the image cannot be read: {reason}") from error


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
    return survey(folder)[0]


def survey(folder: Path) -> tuple[list[str], Counter[str]]:
    """Return what ``list_images`` does, and the kinds of images that are left out, with their numbers.

    Contact sheets that aimamba wrote are left out by their name, formats that cannot be read here by their suffix.

    Raises:
        DataError: A folder cannot be listed.
    """
    found: list[str] = []
    left_out: Counter[str] = Counter()
    try:
        for path in _walk(folder, "", ()):
            kind = _left_out_as(path.rpartition("/")[2])
            if kind is not None:
                left_out[kind] += 1
            elif is_image_name(path.rpartition("/")[2]):
                found.append(path)
    except OSError as error:
        raise DataError(_fault(error.filename or folder, error)) from error
    return found, left_out


def describe_left_out(left_out: Counter[str]) -> str:
    """Return ``"3 files left out: 2 HEIC (how to read it), 1 broken"``; empty if there are none."""
    if not (count := left_out.total()):
        return ""
    kinds = (
        f"{number} {kind}" + (f" ({_REMEDIES[kind]})" if kind in _REMEDIES else "") for kind, number in left_out.items()
    )
    return f"{count} file{'s' if count > 1 else ''} left out: {', '.join(kinds)}"


def check_class_folder(root: Path, name: str) -> None:
    """Check that the name of a class folder is a text.

    Raises:
        DataError: It has bytes outside UTF-8, which no file of ours can record.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{root}: the name of the class folder {name!r} is not valid UTF-8; rename it") from error


def check_no_loose_images(root: Path, loose: Sequence[str], classes: Sequence[str]) -> None:
    """Check that no image lies beside class folders: it would have no class.

    Raises:
        DataError: There is one.
    """
    if loose and classes:
        raise DataError(
            f"{root}: {len(loose)} image{'s lie' if len(loose) > 1 else ' lies'} beside its {len(classes)} class "
            f"folders (such as {loose[0]}): move them into one, into a folder for a class of their own, or out of "
            f"there, or name the classes to take, as in {root}:{classes[0]}"
        )


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the image files that can be read on this machine."""
    heic = _HEIC if find_spec("pillow_heif") is not None else frozenset()
    return SUFFIXES | heic | (_AVIF if features.check("avif") else frozenset())


@cache
def _formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that can be read; the HEIC reader is loaded when it is there."""
    formats: tuple[str, ...] = _FORMATS
    if readable_suffixes() >= _HEIC:
        import pillow_heif  # noqa: PLC0415 - an extra

        pillow_heif.register_heif_opener()
        formats += ("HEIF",)
    return (*formats, "AVIF") if readable_suffixes() >= _AVIF else formats


def _left_out_as(name: str) -> str | None:
    """Return as what kind an image file is left out; None for one that is read, and for what is no image."""
    if _SHEET.fullmatch(name):
        return "contact sheet of aimamba's"
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in _HEIC | _AVIF | _OTHERS or suffix in readable_suffixes():
        return None
    return "HEIC" if suffix in _HEIC else suffix[1:].upper()


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


def read_size(file: SeekableFile) -> tuple[int, int] | None:
    """Read the header of an image in an open file: width and height in pixels; None if it cannot be read."""
    try:
        with Image.open(file, formats=_formats()) as image:  # type: ignore[arg-type]
            return image.size if min(image.size) > 0 else None
    except _UNREADABLE:
        return None


def is_image_name(name: str) -> bool:
    """Return whether a file's name is that of an image that can be read, not hidden, and not a contact sheet's."""
    if name.startswith(".") or _SHEET.fullmatch(name):
        return False
    return os.path.splitext(name)[1].lower() in readable_suffixes()


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
        else:
            yield f"{prefix}{entry.name}"


def _read_size(path: Path) -> tuple[int, int] | DataError:
    try:
        require_file(path)
        with Image.open(path, formats=_formats()) as image:
            return image.size if min(image.size) > 0 else DataError(f"{path}: the image has no pixels")
    except _UNREADABLE as error:
        return DataError(_fault(path, error))


def require_file(path: str | os.PathLike[str]) -> None:
    """Raise an ``OSError`` for a pipe, socket or device, which would keep a reader waiting."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError("this is a pipe, socket or device, not a file: remove it")


def _unknown_format(path: str | os.PathLike[str]) -> str:
    """Say why a file is not opened; telephones give HEIC the suffix of JPEG, too."""
    with open(path, "rb") as file:
        start = file.read(12)
    kind = {b"ftypavif": "AVIF", b"ftypavis": "AVIF"}.get(start[4:], "HEIC" if start[4:8] == b"ftyp" else "")
    if kind and f".{kind.lower()}" not in readable_suffixes():
        return f"this is {kind}, whatever its name says; {_REMEDIES[kind]}"
    return "this is not an image in a known format"


def _fault(path: str | os.PathLike[str], error: BaseException) -> str:
    """Describe in one line what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.getsize(path) == 0
        reason = "the file is empty (0 bytes)" if empty else _unknown_format(path)
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower()
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return f"{os.fspath(path)}: {reason}"
