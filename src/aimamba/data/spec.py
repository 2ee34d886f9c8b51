"""Image sets: NAME[-SIZE][:WHICH][:SPLIT[:N]].

  avatars                       ten styles of avatars, drawn by the package
  avatars-64                    the same at 64 pixels
  avatars:planets,sprouts       chosen styles, of the 61 that DiceBear has
  captioned-avatars             four of the styles with captions; see docs/captions.md
  fashion-mnist                 the official files, from Debian's package or $AIMAMBA_DATA
  fashion-mnist:FOLDER          the official files in a folder
  fashion-mnist-28              28 pixels as published; by default padded to 32
  emoji                         emoji in three designs (noto, fluent-flat, fluent-3d), downloaded on first use
  emoji-64:noto                 chosen designs
  FOLDER                        image files; sub-folders are classes
  FOLDER:cats,dogs              chosen classes
  FILE.tar                      images with captions as webdataset has them; also a folder of such files
  FILE.npz                      images as ADM's evaluator reads them, to measure or show only

SPLIT is train, held-out or, for a folder, all; emoji have held-out-names too, names of which no picture is trained on,
while those in held-out are known from another design, and captioned-avatars have held-out-pairs, pairs of attributes
that are not trained on. N limits the images of each class and follows a split, as in
avatars-64:planets,sprouts:held-out:6. -SIZE is for named sets; a folder takes --size. Training and encoding use both
splits, so leave SPLIT out there. Elsewhere the default is held-out for a named set and all for a folder. Avatars have
3,000 training and 500 held-out images of each style, unless N says otherwise. An existing path takes precedence over a
name.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

from aimamba.data.splits import Split
from aimamba.errors import DataError, suggest
from aimamba.files import expand_home

Kind = Literal["avatars", "captioned-avatars", "fashion-mnist", "emoji", "folder", "tars", "npz", "file"]

NAMES = ("avatars", "captioned-avatars", "fashion-mnist", "emoji")
_SHORT = ("avatars", "fashion-mnist", "emoji")  # suggested before the others
DRAWN = ("avatars", "captioned-avatars", "emoji")
"""Sets whose images are made for a size."""

FASHION_SIDES = (28, 32)
"""Sides of Fashion-MNIST's images in pixels, without and with a margin."""

_FILE_KINDS: dict[str, Kind] = {".npz": "npz", ".tar": "tars"}
_EXPECTED = "expected a folder, an .npz file, avatars, captioned-avatars, fashion-mnist or emoji"
_NAMED = re.compile(rf"({'|'.join(NAMES)})(?:-([0-9]{{1,9}}))?(?::(.*))?", re.DOTALL)
_SPLIT = re.compile(rf"(.*):({'|'.join(get_args(Split))})(?::([^:]*))?", re.DOTALL)
_AMOUNT = re.compile("[0-9]{1,18}")
_IDX_FILE = re.compile(r"(train|t10k)-images-idx3-ubyte(\.gz)?")


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The parsed name of a set of images; ``parse_spec`` makes it.

    Attributes:
        text: The name as the user wrote it.
        kind: ``"file"`` is a single file that is not an ``.npz``.
        path: The folder or file; of ``fashion-mnist`` the folder of its files, where it is given.
        size: Side in pixels, where the name has it.
        which: Styles, designs or classes, where the name has them.
        split: The split, where the name has it.
        per_class: How many images of each class, where the name has it.
    """

    text: str
    kind: Kind
    path: Path | None = None
    size: int | None = None
    which: tuple[str, ...] | None = None
    split: Split | None = None
    per_class: int | None = None

    @property
    def needs_size(self) -> bool:
        """Whether the images can have any size and the name does not say which."""
        return self.kind in DRAWN and self.size is None

    def resolve_size(self, size: int | None, *, default: int | None = None) -> int | None:
        """Return the side of the images: the one in the name, else ``size``, else ``default``.

        The default of Fashion-MNIST is 32 pixels, unless ``default`` is 28.

        Raises:
            DataError: The name has one size and ``size`` is another.
        """
        if self.size is not None and size is not None and size != self.size:
            raise DataError(
                f"{self.text}: the name says {self.size} pixels, but the size is set to {size}; "
                "leave one out, or make them equal"
            )
        if self.kind == "fashion-mnist" and default not in FASHION_SIDES:
            default = FASHION_SIDES[-1]
        return self.size if self.size is not None else size if size is not None else default


def parse_spec(text: str) -> ImageSpec:
    """Parse the name of a set of images (see the table above).

    Raises:
        DataError: There is no such path and no such name; the nearest is suggested.
    """
    if (path := _existing(text)) is not None:
        return _of_path(text, path)
    body, split, per_class = _cut_split(text)
    if body != text and (path := _existing(body)) is not None:
        return _of_path(text, path, None, split, per_class)
    folder, _, which = body.rpartition(":")
    if (path := _existing(folder)) is not None and not _holds_fashion_mnist(path):
        return _of_path(text, path, _names(which), split, per_class)
    named = _NAMED.fullmatch(body)
    if named is None:
        _refuse(text, body)
    name, size, rest = named.groups()
    side = None if size is None else int(size)
    if side == 0:
        raise DataError(f"{text}: a size of 0 pixels is not possible; write it as in {name}-64")
    if rest is not None and (found := re.search(r":(\d+)$", f":{rest}")):
        raise DataError(
            f"{text}: a number needs a split before it, as in {text.removesuffix(found[0])}:held-out{found[0]}"
        )
    if name != "fashion-mnist":
        chosen = None if rest is None else _names(rest)
        return ImageSpec(text=text, kind=cast(Kind, name), size=side, which=chosen, split=split, per_class=per_class)
    files = expand_home(rest) if rest else None
    return ImageSpec(text=text, kind="fashion-mnist", path=files, size=side, split=split, per_class=per_class)


def paths_of(names: Iterable[str], *, missing_ok: bool = False) -> list[Path]:
    """Return the folders and files of those sets that have some.

    Args:
        names: Names of sets, as ``parse_spec`` takes them.
        missing_ok: Leave out sets that do not exist, for a command that names all that is missing in one message later.

    Raises:
        DataError: There is no such set, and ``missing_ok`` is false.
    """
    paths = []
    left_out = (DataError,) if missing_ok else ()
    for name in names:
        with suppress(*left_out):
            paths.append(parse_spec(name).path)
    return [path for path in paths if path is not None]


def training_set_of(text: str) -> str | None:
    """Return the name of the training images that belong to a whole held-out set.

    Returns:
        ``"avatars-64:train"`` for ``"avatars-64:held-out"``; None for a folder, a file, a part of a set and a set that
        is not held out.
    """
    spec = parse_spec(text)
    if spec.kind not in NAMES or spec.split not in (None, "held-out") or spec.per_class is not None:
        return None
    return f"{text.removesuffix(':held-out')}:train"


def _existing(text: str) -> Path | None:
    """The path, if there is one and it can be looked up."""
    if not text:
        return None
    path = expand_home(text)
    try:
        return path if path.exists() else None
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return None


def _cut_split(text: str) -> tuple[str, Split | None, int | None]:
    """The name without split and number, the split, the number."""
    found = _SPLIT.fullmatch(text)
    if found is None:
        return text, None, None
    body, split, amount = found.groups()
    if amount is not None and not (_AMOUNT.fullmatch(amount) and int(amount) > 0):
        raise DataError(
            f"{text}: expected a number of images of each class after {split}, as in {body}:{split}:10, got {amount!r}"
        )
    return body, split, None if amount is None else int(amount)  # type: ignore[return-value]  # a Split, as matched


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _of_path(
    text: str,
    path: Path,
    which: tuple[str, ...] | None = None,
    split: Split | None = None,
    per_class: int | None = None,
) -> ImageSpec:
    kind: Kind = "folder" if path.is_dir() else _FILE_KINDS.get(path.suffix, "file")
    if kind == "folder" and which is None and _holds_fashion_mnist(path):
        kind = "fashion-mnist"
    if kind == "folder" and _holds_tars(path):
        kind = "tars"
    if kind in ("npz", "file") and (which, split) != (None, None):
        raise DataError(f"{text}: a file has no classes or splits to choose from; give {path} alone")
    return ImageSpec(text=text, kind=kind, path=path, which=which, split=split, per_class=per_class)


def _holds_fashion_mnist(folder: Path) -> bool:
    try:
        return any(_IDX_FILE.fullmatch(path.name) for path in folder.iterdir())
    except OSError:  # a file, or a folder that cannot be listed; whoever opens it reports that
        return False


def _holds_tars(folder: Path) -> bool:
    """Whether there are tar archives in a folder, and no other folders."""
    try:
        with os.scandir(folder) as entries:
            kinds = {"/" if entry.is_dir() else os.path.splitext(entry.name)[1] for entry in entries}
    except OSError:
        return False
    return ".tar" in kinds and "/" not in kinds


def _refuse(text: str, body: str) -> NoReturn:
    """Raise the error for an unknown name, with the nearest name or file."""
    if not body:
        raise DataError(f"{text!r}: the name of the image set is empty; {_EXPECTED}")
    folder, _, size = body.rpartition("-")
    if size.isdecimal() and _existing(folder) is not None:
        raise DataError(f"{text}: a folder takes no -SIZE; give {folder} and --size {size}")
    path = expand_home(body)
    if os.path.islink(path):
        raise DataError(f"{text}: this is a link to a place that does not exist; give another set")
    try:
        known = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):  # no such folder, or none that can be listed
        known = []
    word = path.name
    if "/" not in body:
        word = re.sub(r"(-\d+)?(:.*)?$", "", body, flags=re.DOTALL)
        known = [*_SHORT, *known]
    near = suggest(word, known) or suggest(word, NAMES)
    raise DataError(f"{text}: no such file, folder or named set{near or f'; {_EXPECTED}'}")
