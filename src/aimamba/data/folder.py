"""A folder of images with one sub-folder for each class, decoded image by image during training."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from aimamba.config import check
from aimamba.data.caption_files import METADATA, CaptionFiles, CaptionSource, FileImages
from aimamba.data.files import (
    KINDS,
    check_class_folder,
    check_no_loose_images,
    describe_left_out,
    is_image_name,
    open_image,
    read_sizes,
    suggest_sibling,
    survey,
)
from aimamba.data.splits import FOLDER_SPLITS, HELD_OUT, Split, first_of_each, select
from aimamba.data.transforms import center_crop, flip, random_crop, to_array, too_narrow
from aimamba.errors import DataError, suggest
from aimamba.files import expand_home

Crop = Literal["center", "random"]

UNNAMED = "images"
"""The class of images in no class folder."""


class BrokenImageWarning(UserWarning):
    """A file of the data set cannot be read and is skipped."""


class ImageFolder(FileImages):
    """Images in class sub-folders: ``root/cat/1.jpg``, ``root/dog/summer/7.png``.

    Classes are the sub-folders in the order of their names. PNG, JPEG, WebP, BMP, GIF (first frame), TIFF and, where
    they can be read, AVIF and HEIC files are found at any depth inside them; hidden files and folders, and contact
    sheets that aimamba wrote (``sheet.png``), are ignored. Opening reads every header, so unreadable and too small
    files are found before training starts. A truncated file is found only when it is decoded: then a
    ``BrokenImageWarning`` names it and the next intact image of its class replaces it, the same one in every run.

    Which images are held out depends on their names alone (see ``aimamba.data.splits``).

    Images may have captions, see ``caption_files``, which are read when the first one is asked for. With captions the
    folder may hold the images themselves; they are one class then.

    Attributes:
        root: The folder.
        class_names: Names of the classes; a label is an index into them.
        labels: Class index of every image, increasing, (n,) int64.
        names: Path of every image relative to ``root``, with ``/`` between folders.
        size: Side of the images in pixels.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: int,
        split: Split = "train",
        crop: Crop = "center",
        flip: bool = False,
        classes: Sequence[str] | None = None,
        per_class: int | None = None,
        held_out: float = HELD_OUT,
        upscale: bool = False,
        max_broken: int | None = None,
        strict: bool = False,
        name: str | None = None,
    ) -> None:
        """Find the images and read their headers.

        Args:
            root: Folder whose sub-folders are the classes.
            size: Side of the images to return, in pixels.
            split: The images to train on, those held out, or all.
            crop: Area of a random view: the centre, or a random square of 80 to 100 % of the shorter side.
            flip: Whether a random view is mirrored half of the time.
            classes: Take only these classes, in this order.
            per_class: Take at most this many images of each class (a fixed choice by name).
            held_out: Share of the images to hold out, in (0, 1).
            upscale: Enlarge images whose shorter side is below ``size`` instead of refusing them.
            max_broken: How many broken files to skip; by default 1 % of the files, but at least 10. Each process that
                decodes counts the ones it finds.
            strict: Raise an error for the first broken file.
            name: The name that the user gave the folder; by default its path.

        Raises:
            ConfigError: A setting is out of range.
            DataError: The folder is missing, is empty or has no class sub-folders; a class is unknown or empty; an
                image is too small; too many files are broken; or the split holds no image.
        """
        _check_settings(size, split, crop, per_class=per_class, held_out=held_out, max_broken=max_broken)
        self.root = expand_home(root)
        self.name = str(root) if name is None else name
        self.size = size
        self._crop = crop
        self._flip = flip
        self._strict = strict
        names, labels = self._find(classes)
        chosen = select(names, split, held_out)
        if per_class is not None:
            chosen = first_of_each(chosen, names, labels, per_class)
        if not chosen:
            raise DataError(
                f"{self.root}: the {split} split holds no image, as the folder has only {len(names)}: "
                "at least 2 are needed, one to train on and one to hold out"
            )
        self._stand_ins: dict[int, int] = {}
        self._max_broken = max(10, len(chosen) // 100) if max_broken is None else max_broken
        self._broken: set[str] = set()
        intact = self._inspect(chosen, names, upscale)
        self.names = tuple(names[index] for index in intact)
        self.labels: Int64[np.ndarray, "n"] = np.array([labels[index] for index in intact], np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @property
    def left_out(self) -> Counter[str]:
        """Kinds of files that are left out, with their numbers; ``broken`` counts those of this split found so far."""
        return self._left_out + Counter(broken=len(self._broken))

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Decode one image.

        Args:
            index: Which one, in [0, n).
            rng: Chooses the crop and the flip, if the folder was opened with them; None returns the centre view, not
                mirrored.

        Returns:
            Bytes of the RGB image, (size, size, 3).

        Raises:
            DataError: The file is broken and ``strict`` is set; too many files are broken; or all of its class are.
            IndexError: ``index`` is out of range.
        """
        image = self.original(index)
        if rng is None:
            return to_array(center_crop(image, self.size))
        random = self._crop == "random"
        image = random_crop(image, self.size, rng) if random else center_crop(image, self.size)
        mirrored = self._flip and rng.random() < 0.5
        return to_array(flip(image) if mirrored else image)

    def stand_in(self, index: int) -> int:
        """Return which image has replaced one that was found broken; an intact one stands for itself."""
        return self._stand_ins.get(index, index)

    def original(self, index: int) -> Image.Image:
        """Decode one image at its full size, as upright RGB; errors as for ``image``."""
        return self._decode(index)

    def file_hash(self, index: int) -> str:
        """Return the SHA-256 of the bytes of an image's file.

        Raises:
            DataError: The file cannot be read.
        """
        return self._hash(self.names[index])

    def _find(self, classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
        """Find all images of the set: names, ordered by class, and labels."""
        self.class_names, folders = _classes(self.root, classes)
        names, labels, self._left_out = _find(self.root, folders)
        self._caption_source: CaptionSource = CaptionFiles(self.root, names)
        return names, labels

    def _sizes(self, names: Sequence[str]) -> list[tuple[int, int] | DataError]:
        """Return width and height of some images, or what is wrong with them."""
        return read_sizes([self.root / name for name in names])

    def _open(self, name: str) -> Image.Image:
        """Decode an image."""
        return open_image(self.root / name)

    def _hash(self, name: str) -> str:
        path = self.root / name
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); restore or remove it") from error

    def _inspect(self, chosen: list[int], names: list[str], upscale: bool) -> list[int]:
        """Read the headers of the chosen files; return those that can be used."""
        intact, small = [], []
        sizes = self._sizes([names[index] for index in chosen])
        for index, size in zip(chosen, sizes, strict=True):
            if isinstance(size, DataError):
                self._skip(names[index], size)
            elif min(size) < self.size and not upscale:
                small.append((names[index], size))
            elif (reason := too_narrow(size, self.size)) is not None:
                self._skip(names[index], DataError(f"{self.root / names[index]}: {reason}"))
            else:
                intact.append(index)
        if small:
            name, (width, height) = small[0]
            others = f" (and {len(small) - 1} more like it)" if len(small) > 1 else ""
            raise DataError(
                f"{self.root / name}: the image is {width} x {height} pixels, but its shorter side must be at least "
                f"{self.size}{others}: use a smaller size, remove it, or allow enlarging (data.upscale = true, or "
                "--upscale of encode)"
            )
        if not intact:
            raise DataError(f"{self.root}: all {len(chosen)} images of the split are broken: replace them")
        return intact

    def _decode(self, index: int) -> Image.Image:
        """Decode the image, or the next intact one of its class."""
        self._check(index)
        label = self.labels[index]
        first, last = np.searchsorted(self.labels, [label, label + 1])
        for candidate in chain(range(index, last), range(first, index)):
            name = self.names[candidate]
            if name in self._broken:
                continue
            try:
                image = self._open(name)
            except DataError as fault:
                self._skip(name, fault)
                continue
            if candidate != index:
                self._stand_ins[index] = candidate
            return image
        raise DataError(f"{self.root / self.class_names[label]}: all images of this class are broken: replace them")

    def _skip(self, name: str, fault: DataError) -> None:
        if self._strict:
            raise DataError(f"{fault}: replace or remove it, or leave out strict (--strict, data.strict) to skip it")
        self._broken.add(name)
        if len(self._broken) > self._max_broken:
            raise DataError(
                f"{fault}, which makes {len(self._broken)} broken images where {self._max_broken} are allowed: "
                "replace or remove them, or raise max_broken (data.max_broken)"
            )
        warnings.warn(BrokenImageWarning(f"{fault}; it is skipped"), stacklevel=3)


def _check_settings(
    size: int, split: str, crop: str, *, per_class: int | None, held_out: float, max_broken: int | None
) -> None:
    crops = get_args(Crop)
    check(size >= 1, f"size must be at least 1 pixel, got {size}")
    check(split in FOLDER_SPLITS, f"split must be one of {', '.join(map(repr, FOLDER_SPLITS))}, got {split!r}")
    check(crop in crops, f"crop must be one of {', '.join(map(repr, crops))}, got {crop!r}")
    check(0 < held_out < 1, f"held_out must lie between 0 and 1, got {held_out}")
    check(per_class is None or per_class >= 1, f"per_class must be at least 1, got {per_class}")
    check(max_broken is None or max_broken >= 0, f"max_broken must not be negative, got {max_broken}")


def _classes(root: Path, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes, and the folder of each, relative to the root and with its ``/``."""
    if not root.exists():
        raise DataError(f"{root}: there is no such folder{suggest_sibling(root)}")
    if not root.is_dir():
        raise DataError(f"{root}: this is a file, but a folder with a sub-folder for each class is needed")
    try:
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root}: cannot list the folder ({error.strerror})") from error
    found = [path.name for path in entries if path.is_dir()]
    loose = [path.name for path in entries if is_image_name(path.name)]
    if loose and not found and wanted is None and CaptionFiles(root, loose):
        return (UNNAMED,), [""]
    if not found and loose:
        raise DataError(
            f"{root}: the folder holds {len(loose)} images but no sub-folders: move those of each class into a "
            f"sub-folder named after it, e.g. {root / 'cats' / loose[0]}, or give them captions (NAME.txt beside "
            f"each, or {METADATA[0]})"
        )
    if not found:
        raise DataError(f"{root}: the folder is empty: a sub-folder with images is needed for each class")
    if wanted is None:
        check_no_loose_images(root, loose, found)
        for name in found:
            check_class_folder(root, name)
        return tuple(found), [f"{name}/" for name in found]
    if not wanted:
        raise DataError(f"{root}: no class is named; leave the colon out for all {len(found)}")
    twice = [name for name in wanted if wanted.count(name) > 1]
    if twice:
        raise DataError(f"{root}: the class {twice[0]!r} is named twice; name each once")
    for name in wanted:
        if name not in found:
            near = suggest(name, found) or f": {', '.join(found[:10])}{', ...' if len(found) > 10 else ''}"
            raise DataError(f"{root}: there is no class {name!r} among its {len(found)} folders{near}")
    return tuple(wanted), [f"{name}/" for name in wanted]


def _find(root: Path, folders: Sequence[str]) -> tuple[list[str], list[int], Counter[str]]:
    """Relative paths and labels of all images, by class and then by path, and what is left out."""
    names: list[str] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for label, folder in enumerate(folders):
        found, others = survey(root / folder)
        if not found:
            detail = f"; {describe_left_out(others)}" if others else ""
            raise DataError(
                f"{root / folder}: this class folder holds no images ({KINDS}){detail}: add some, remove it, or "
                f"name the classes to take, as in {root}:cats,dogs"
            )
        names += [f"{folder}{name}" for name in found]
        labels += [label] * len(found)
        left_out += others
    return names, labels, left_out
