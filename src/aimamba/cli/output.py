"""What a command writes: places that are checked before the work begins, tables, JSON, file names for classes."""

import errno
import functools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from aimamba.data.class_names import normalise
from aimamba.errors import ConfigError, printable
from aimamba.files import LONGEST_NAME, amount, expand_home, write_atomically

_LONGEST_NAME = 60  # characters
_LONGEST_BYTES = 180  # with numbers, a seed and a suffix below the 255 bytes of common file systems
_LONGEST_TEXT = 1000  # characters that are looked at
_SPECIAL = (("dev",), ("proc",), ("sys",))  # folders of devices
_NO_IMAGES = (".json", ".npz")  # which can lie among images


def output_folder(path: Path, option: str = "--out") -> Path:
    """Check that a folder exists or can be made; nothing is made yet.

    Args:
        path: The folder.
        option: The option that named it, for the message.

    Returns:
        The path, with a leading ``~`` expanded.

    Raises:
        ConfigError: A file is in the way, or writing is not permitted.
    """
    path = expand_home(path)
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{option} {path} is a link to a place that does not exist; give another {option}")
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{option} {path}: {nearest} is a file, but a folder is needed; give another {option}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: writing in {nearest} is not permitted; give another {option}")
    return path


def output_file(option: str, path: Path | None, *, suffix: str = "") -> Path | None:
    """Check that a file can be written; nothing is written yet. Of a link it is the file that it leads to.

    Args:
        option: The option that named it, for the message.
        path: The file, or None for no file.
        suffix: What its name must end in, by which the format is recognised.

    Returns:
        The path, with a leading ``~`` expanded, or None.

    Raises:
        ConfigError: Its name is another or too long, its folder is missing, the path is a folder, a device or a pipe,
            or writing is not permitted.
    """
    if path is None:
        return None
    path = expand_home(path)
    special = path.absolute().parts[1:2] in _SPECIAL
    path = _real(path) if path.is_symlink() else path
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder, but a file is needed; give a name inside it")
    if suffix and path.suffix != suffix:
        raise ConfigError(f"{option} {path}: the name must end in {suffix}, since that is what is written")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if special or path.absolute().parts[1:2] in _SPECIAL or (path.exists() and not path.is_file()):
        raise ConfigError(f"{option} {path} is a device or a pipe, but a file is needed; give another name")
    if len(path.name.encode(errors="surrogateescape")) > LONGEST_NAME:
        raise ConfigError(f"{option} {path}: the name is too long, at most {LONGEST_NAME} bytes")
    parent = path.absolute().parent  # in which a draft is written first
    if not os.access(parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ConfigError(f"{option} {path}: writing is not permitted there; give another file")
    return path


def require_apart(outputs: Iterable[tuple[str, Path | None]], read: Iterable[Path | None]) -> None:
    """Check that what a command writes replaces neither what it reads nor one another, and mixes with no images.

    Args:
        outputs: Files and folders that it writes, each with its option; None for what is not written.
        read: Files and folders that it reads, likewise.

    Raises:
        ConfigError: One does.
    """
    real = functools.cache(_real)  # of the folder of a million files once

    def entry(path: Path) -> Path:
        return real(path.absolute().parent) / path.name

    sources = {place for path in read if path is not None for place in (real(path), entry(path))}
    options: dict[Path, str] = {}
    for option, path in outputs:
        if path is None:
            continue
        place = real(path) if path.is_dir() else entry(path)  # a link to a file is what is replaced, and not the file
        if place in options:
            raise ConfigError(f"{options[place]} and {option} name the same file, {path}; give two names")
        options[place] = option
        if place in sources:
            raise ConfigError(f"{option} {path}: this is what the command reads; give another place")
        if place.suffix not in _NO_IMAGES and not sources.isdisjoint(place.parents):
            raise ConfigError(f"{option} {path} lies in a folder of images that the command reads; give another place")


def _real(path: Path) -> Path:
    """Return where a path leads, also one of links that lead to each other."""
    return Path(os.path.realpath(path))


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Check that a disk has room for what a long command will write.

    Args:
        folder: Where it writes; the folder or one above it exists.
        needed: Bytes.
        purpose: What needs the room, for the message.

    Raises:
        ConfigError: There is less room.
    """
    import shutil

    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise ConfigError(
            f"{purpose}: {os.strerror(errno.ENOSPC)} ({amount(needed)} needed, {amount(free)} free); make room and run "
            "the same command again"
        )


def print_line(text: str) -> None:
    """Print one line to stdout; what could harm a terminal or end the line is printed as an escape."""
    print(printable(text))


def print_notice(text: str) -> None:
    """Print one line to stderr, as ``print_line``."""
    print(printable(text), file=sys.stderr)


@contextmanager
def locked_output(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder of samples, which is made if needed, and stays.

    Raises:
        ConfigError: Another process is writing there.
    """
    from aimamba.train.lock import locked

    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


@contextmanager
def locked_parts(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder of unfinished samples; it is removed at the end if it is empty.

    Raises:
        ConfigError: Another process is writing there.
    """
    from aimamba.train.lock import locked

    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except ConfigError as error:
            raise ConfigError(
                f"another process is sampling the same ({folder} is locked); wait for it, or stop it"
            ) from error
        yield
    with suppress(OSError):
        folder.rmdir()


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print_line(f"{name:<{width}}  {value}")


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write a JSON object to ``path``; None writes no file."""
    if path is not None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        encoded = text.encode("utf-8", "backslashreplace")  # names of files may hold bytes that are not UTF-8
        write_atomically(path, lambda draft: draft.write_bytes(encoded))


def file_name(text: str) -> str:
    """Turn any text into a part of a file name; a text without letters and digits becomes empty."""
    return _cut(re.sub(r"[^\w.-]+", "-", text.strip()[:_LONGEST_TEXT]).strip("-."))


def file_names(names: Sequence[str]) -> list[str]:
    """Return a file name for each class, unique even where case is ignored: equal ones get the class's number.

    A number is repeated where the name with it is another class's name.
    """
    stems = [file_name(name) or "class" for name in names]
    count = Counter(map(normalise, stems))
    taken = {folded for folded, amount in count.items() if amount == 1}
    made = []
    for label, stem in enumerate(stems):
        name = stem
        if count[normalise(stem)] > 1:
            name = f"{stem}-{label}"
            while normalise(name) in taken:
                name = f"{name}-{label}"
            taken.add(normalise(name))
        made.append(name)
    return made


def _cut(stem: str) -> str:
    """Return as much of the beginning as fits in the number of bytes that a name may have."""
    return stem[:_LONGEST_NAME].encode()[:_LONGEST_BYTES].decode(errors="ignore")
