"""Images in tar archives, as the library ``webdataset`` has them: ``key.jpg``, ``key.txt`` and perhaps ``key.cls``.

Nothing is unpacked: an index, made once for each archive and kept in the cache folder, says where in it every image and
caption is, and they are read from there in any order.
"""

import hashlib
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from aimamba.data.caption_files import decode_captions, pack_captions
from aimamba.data.caption_lines import LONGEST, CaptionLines
from aimamba.data.files import decode_image, read_size, readable_suffixes, require_file
from aimamba.data.folder import UNNAMED, ImageFolder
from aimamba.errors import DataError
from aimamba.files import cache_folder, write_atomically

_FORMAT = "1"  # of the index
_LONGEST_CLASS = 18  # digits, so that it fits into 64 bits
_MOST_BYTES = 1 << 30  # of an image
_MOST_PIXELS = 1 << 28
_NONE = -1

# Columns of an index: where image and caption begin, how long they are, class, width and height.
_IMAGE, _IMAGE_SIZE, _TEXT, _TEXT_SIZE, _CLASS, _WIDTH, _HEIGHT = range(7)


class TarImages(ImageFolder):
    """The images of one or several tar archives, read where they are.

    A sample is the files of a tar with one key, the name up to the first dot: an image, a text ``.txt`` with a caption
    on each line, and a class ``.cls``, a whole number. Every image has a class, or none has, and they are one class.
    Other files are passed over. An image is named as in ``shard-000.tar/key.jpg``, which decides whether it is
    held out. Options, and what happens to broken images, are as in ``ImageFolder``.
    """

    def _find(self, classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
        if classes is not None:
            raise DataError(f"{self.root}: tar archives have no class folders to choose from; leave the classes out")
        self._tars = [self.root] if self.root.is_file() else sorted(self.root.glob("*.tar"))
        if self.root.is_file():
            self.root = self.root.parent
        indices = [_open_index(path) for path in self._tars]
        if not any(index.names for index in indices):
            raise DataError(f"{self.root}: there are no images in {', '.join(path.name for path in self._tars[:3])}")
        table = np.concatenate([index.table for index in indices])
        names = [f"{path.name}/{name}" for path, index in zip(self._tars, indices, strict=True) for name in index.names]
        classes_of = table[:, _CLASS]
        if (without := int((classes_of == _NONE).sum())) not in (0, len(names)):
            first = names[int((classes_of == _NONE).argmax())]
            raise DataError(
                f"{self.root / first}: has no class (.cls), as {without} of {len(names)}; give all one, or none"
            )
        known, labels = np.unique(classes_of, return_inverse=True)
        self.class_names = (UNNAMED,) if without else tuple(map(str, known.tolist()))
        order = np.argsort(labels, kind="stable")
        self._table = table
        self._tar_of = np.repeat(np.arange(len(indices)), [len(index.names) for index in indices])
        self._rows = {name: row for row, name in enumerate(names)}
        self._left_out = Counter()
        self._caption_source = _Captions(self)
        return [names[row] for row in order], labels[order].tolist()

    def text(self, name: str) -> bytes | None:
        """Return the caption file of an image; None if it has none."""
        return self._read(name, _TEXT)

    @property
    def has_texts(self) -> bool:
        """Whether there are captions."""
        return bool((self._table[:, _TEXT] != _NONE).any())

    @property
    def identity(self) -> dict[str, Any]:
        """Paths, lengths and times of the archives, and which of their images these are."""
        stats = [(path, path.stat()) for path in self._tars]
        names = hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogateescape")).hexdigest()
        tars = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return {"tars": tars, "size": self.size, "names": names}

    def _sizes(self, names: Sequence[str]) -> list[tuple[int, int] | DataError]:
        return [self._size(name) for name in names]

    def _size(self, name: str) -> tuple[int, int] | DataError:
        width, height = self._table[self._rows[name], [_WIDTH, _HEIGHT]].tolist()
        if width > 0:
            return width, height
        try:
            return self._open(name).size
        except DataError as error:
            return error

    def _open(self, name: str) -> Image.Image:
        content = self._read(name, _IMAGE)
        assert content is not None
        try:
            return decode_image(content, most_pixels=_MOST_PIXELS)
        except DataError as error:
            raise DataError(f"{self.root / name}: {error}") from error

    def _hash(self, name: str) -> str:
        content = self._read(name, _IMAGE)
        assert content is not None
        return hashlib.sha256(content).hexdigest()

    def _read(self, name: str, column: int) -> bytes | None:
        row = self._rows[name]
        offset, size = self._table[row, [column, column + 1]].tolist()
        if offset == _NONE:
            return None
        path = self._tars[self._tar_of[row]]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if len(content) < size:
            raise DataError(f"{path}: has become shorter since it was opened; give the command again")
        return content


class _Captions:
    """The captions of tar archives."""

    def __init__(self, images: TarImages) -> None:
        self._images = images

    def __bool__(self) -> bool:
        return self._images.has_texts

    def read(self, names: Sequence[str]) -> CaptionLines:
        root = self._images.root
        texts = (list(decode_captions(self._images.text(name) or b"", root / name)) for name in names)
        return pack_captions(root, names, texts)


class _Index(NamedTuple):
    """What is where in a tar archive.

    Attributes:
        names: Names of the images.
        table: The columns above, for each of them.
    """

    names: list[str]
    table: Int64[np.ndarray, "n 7"]


def _open_index(path: Path) -> _Index:
    """Return the index of an archive, from the cache if it is there.

    Raises:
        DataError: The archive cannot be read.
    """
    try:
        require_file(path)
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    about = "\0".join([_FORMAT, os.fspath(path.resolve()), str(status.st_size), str(status.st_mtime_ns)])
    kept = cache_folder() / "tars" / f"{hashlib.sha256(os.fsencode(about)).hexdigest()[:32]}.npz"
    with suppress(Exception):  # not kept yet, or damaged: it is made again
        with kept.open("rb") as content, np.load(content, allow_pickle=False) as file:
            names = file["names"].tobytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
            table = file["table"]
        if table.shape == (len(names), 7) and table.dtype == np.int64:
            return _Index(names, table)
    index = _make_index(path)

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            lines = "".join(f"{name}\n" for name in index.names).encode("utf-8", "surrogateescape")
            np.savez(file, names=np.frombuffer(lines, np.uint8), table=index.table)

    with suppress(OSError):  # a cache that cannot be written costs time alone
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, write)
    return index


def _make_index(path: Path) -> _Index:
    names: list[str] = []
    rows: list[list[int]] = []
    seen: set[str] = set()
    for key, members in _samples(path):
        if key in seen:
            raise DataError(f"{path}: the key {key!r} appears in two places; the files of a sample stand together")
        seen.add(key)
        image = [suffix for suffix in members if suffix in readable_suffixes()]
        if len(image) > 1:
            raise DataError(f"{path}: the key {key!r} has two images, {' and '.join(image)}; keep one")
        if image:
            names.append(f"{key}{image[0]}")
            place, text, number = members[image[0]], members.get(".txt"), members.get(".cls")
            rows.append([*place[:2], *(text or (_NONE, 0))[:2], _NONE if number is None else number[2], *place[3:]])
    return _Index(names, np.array(rows, np.int64).reshape(-1, 7))


_Member = tuple[int, int, int, int, int]  # offset, size, class, width, height


def _samples(path: Path) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Yield the keys of an archive with the files of each by suffix, in order."""
    before, members = "", dict[str, _Member]()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would remember all of them
                folder, name = posixpath.split(member.name)
                if not member.isreg() or member.issparse() or name.startswith(".") or "\n" in member.name:
                    continue
                stem, dot, suffix = name.partition(".")
                key = posixpath.join(folder, stem)
                if key != before and members:
                    yield before, members
                    members = {}
                before = key
                suffix = f"{dot}{suffix.lower()}"
                if suffix in members:
                    raise DataError(f"{path}: {member.name!r} is in it twice; keep one")
                if suffix in readable_suffixes() or suffix in (".txt", ".cls"):
                    members[suffix] = _look_at(file, member, suffix, f"{path}/{member.name}")
            file.seek(archive.offset)
            if (end := file.read(tarfile.BLOCKSIZE)) and end != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends in the middle")
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the latter are of sizes that no file has
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: not a whole tar archive ({reason}); copy it again, or unpack its compression (gunzip)"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if members:
        yield before, members


def _look_at(file: IO[bytes], member: tarfile.TarInfo, suffix: str, where: str) -> _Member:
    """Return what the index keeps of a file; the place in the archive stays as it was."""
    offset, size = member.offset_data, member.size
    limit = {".txt": 4 * LONGEST, ".cls": _LONGEST_CLASS}.get(suffix, _MOST_BYTES)
    if size > limit:
        raise DataError(f"{where}: {size:,} bytes, more than the {limit:,} that are read; remove it")
    before = file.tell()
    file.seek(offset)
    number, width, height = _NONE, 0, 0
    if suffix == ".cls":
        text = file.read(size).strip()
        if not text.isdigit():
            raise DataError(f"{where}: expected a class as a whole number, got {text[:20]!r}")
        number = int(text)
    elif suffix != ".txt":
        width, height = read_size(_Window(file, offset, size)) or (0, 0)
    file.seek(before)
    return offset, size, number, width, height


class _Window:
    """A part of a file as a file of its own."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._place = file, offset, size, 0

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._place)
        self._file.seek(self._offset + self._place)
        content = self._file.read(left if count < 0 else min(count, left))
        self._place += len(content)
        return content

    def seek(self, place: int, whence: int = 0) -> int:
        self._place = place + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place
