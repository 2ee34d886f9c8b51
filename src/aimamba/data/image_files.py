"""The image files of a folder, to be measured or shown: every one of them, with or without classes."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from aimamba.config import check
from aimamba.data.caption_files import CaptionFiles, FileImages
from aimamba.data.files import (
    KINDS,
    check_class_folder,
    check_no_loose_images,
    describe_left_out,
    open_image,
    read_sizes,
    survey,
)
from aimamba.data.splits import FOLDER_SPLITS, HELD_OUT, Split, first_of_each, select
from aimamba.data.transforms import center_crop, to_array
from aimamba.errors import DataError, suggest

_END_MARKS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # JPEG, PNG
_END = 4096  # bytes that are searched for them; some programs write more behind them
_DECODED_AT_ONCE = 2  # the largest PNG takes 1.3 GB
_DECODED_AT_LEAST = 64  # pixels, for checking alone: very large images are decoded smaller


class ImageFiles(FileImages):
    """The image files below a folder, ordered by path; sub-folders are classes, and loose images have no class.

    Where ``ImageFolder`` prepares images for training and passes over broken ones, this reads every file and reports
    the first that cannot be used. Contact sheets that aimamba wrote (``sheet.png``, ``sheet-page-2.png``) are left out.
    """

    def __init__(
        self,
        root: Path,
        split: Split = "all",
        *,
        size: int | None = None,
        classes: Sequence[str] | None = None,
        per_class: int | None = None,
        name: str | None = None,
        skip_broken: bool | None = None,
        progress: bool = False,
    ) -> None:
        """Find the files and read their headers.

        Args:
            root: The folder.
            split: ``"all"``, or ``"train"`` or ``"held-out"`` by the files' names, as in training.
            size: Crop every image to its centre square and scale it down to this side in pixels. By default the images
                must all be squares of one size.
            classes: Take only these sub-folders.
            per_class: Take at most this many images of each class (a fixed choice by name).
            name: The name that the user gave the folder; by default its path.
            skip_broken: Decode every image first, and leave out those that cannot be read. None where the user cannot
                choose it, so that messages do not name it.
            progress: Show a bar on stderr while they are decoded.

        Raises:
            ConfigError: A number is below 1.
            DataError: There is no image or no such class, an image is broken or smaller than ``size``, or the images
                differ in size and ``size`` is not given.
        """
        check(size is None or size >= 1, f"size must be at least 1 pixel, got {size}")
        check(per_class is None or per_class >= 1, f"per_class must be at least 1, got {per_class}")
        check(split in FOLDER_SPLITS, f"{root}: a folder has no split {split!r}; use one of {', '.join(FOLDER_SPLITS)}")
        self.name = str(root) if name is None else name
        self._root = root
        found, self.left_out = survey(root)
        known = _classes(found)
        if classes is None:
            check_no_loose_images(root, [path for path in found if not _class_of(path)], known)
        for class_name in known:
            check_class_folder(root, class_name)
        self._caption_source = CaptionFiles(root, found)
        self.names = _choose(root, found, split, classes, per_class)
        if not self.names:
            detail = f"; {describe_left_out(self.left_out)}" if self.left_out else ""
            raise DataError(f"{self.name}: there are no images ({KINDS}){detail}; give another folder")
        self._remedy = "; --skip-broken leaves such files out" if skip_broken is False else ""
        self.broken: tuple[str, ...] = ()
        if skip_broken:
            self._leave_broken_out(progress)
        self._paths = [root / path for path in self.names]
        self._cropped = size is not None
        self.size = self._check_sizes(size)
        folders = [_class_of(path) for path in self.names]
        self.class_names = ()
        self.labels = None
        if "" not in folders:
            self.class_names = tuple(classes or known)
            self.labels = np.array([self.class_names.index(folder) for folder in folders], np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @property
    def identity(self) -> dict[str, Any]:
        """The folder, and names, lengths and times of the files."""
        stats = [(name, (self._root / name).stat()) for name in self.names]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        return {"folder": str(self._root.resolve()), "size": self.size, "cropped": self._cropped, "files": files}

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Decode one image; ``rng`` is not used.

        Raises:
            DataError: The file is broken.
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        path = self._paths[index]
        try:
            image = open_image(path, least=self.size if self._cropped else None)
        except DataError as error:
            raise DataError(f"{error}{self._remedy}") from error
        if not self._cropped and image.size != (self.size, self.size):
            raise DataError(f"{path}: the image has changed since it was found; give the command again")
        return to_array(center_crop(image, self.size) if self._cropped else image)

    def _leave_broken_out(self, progress: bool) -> None:
        """Decode every image, and keep those that can be."""

        def fault(name: str) -> str | None:
            try:
                open_image(self._root / name, least=_DECODED_AT_LEAST)
            except DataError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(_DECODED_AT_ONCE) as pool:
            bar = tqdm(total=len(self.names), desc=f"checking {self.name}", unit="image", disable=not progress)
            with bar:
                faults = {}
                for name, reason in zip(self.names, pool.map(fault, self.names), strict=True):
                    faults[name] = reason
                    bar.update()
        self.broken = tuple(reason for reason in faults.values() if reason is not None)
        self.left_out += Counter(broken=len(self.broken))
        self.names = [name for name, reason in faults.items() if reason is None]
        if not self.names:
            raise DataError(f"{self.name}: none of its {len(self.broken)} images can be read: {self.broken[0]}")

    def _check_sizes(self, wanted: int | None) -> int:
        """Return ``wanted`` if no image is smaller; without it the side that all images have."""
        first: tuple[int, int] | None = None
        for path, size in zip(self._paths, read_sizes(self._paths), strict=True):
            if isinstance(size, DataError):
                raise DataError(f"{size}{self._remedy}")
            if _may_be_cut(path):  # found now rather than after most of the work
                try:
                    open_image(path, least=wanted)
                except DataError as error:
                    raise DataError(f"{error}{self._remedy}") from error
            first = first or size
            image = f"{path}: the image is {size[0]} x {size[1]} pixels"
            if wanted is not None and min(size) < wanted:
                raise DataError(f"{image} and would have to be enlarged to {wanted}: remove it, or use a smaller size")
            if wanted is None and (size != first or size[0] != size[1]):
                raise DataError(
                    f"{image}, but all must be squares of one size ({self._paths[0].name} is {first[0]} x {first[1]}): "
                    "give --size to crop and scale them"
                )
        assert first is not None
        return wanted or first[0]


def _may_be_cut(path: Path) -> bool:
    """Return whether the end mark of a JPEG or PNG is missing; only decoding can tell whether that matters."""
    with path.open("rb") as file:
        start = file.read(8)
        mark = _END_MARKS.get(start[:2])
        if mark is None:
            return False
        file.seek(max(0, path.stat().st_size - _END))
        return mark not in file.read()


def choose_files(
    root: Path, split: Split = "all", *, classes: Sequence[str] | None = None, per_class: int | None = None
) -> list[str]:
    """Return the image files below a folder, relative to it, with ``/`` between folders, but no contact sheets.

    Args:
        root: The folder.
        split: ``"all"``, or ``"train"`` or ``"held-out"`` by the files' names.
        classes: Take only these sub-folders.
        per_class: Take at most this many images of each class.

    Raises:
        DataError: There is no such class, or the folder cannot be read.
    """
    return _choose(root, survey(root)[0], split, classes, per_class)


def _choose(
    root: Path, found: list[str], split: Split, classes: Sequence[str] | None, per_class: int | None
) -> list[str]:
    if classes is not None:
        _check_classes(root, classes, _classes(found))
        found = [path for path in found if _class_of(path) in classes]
    chosen = select(found, split, HELD_OUT)
    if per_class is not None:
        chosen = first_of_each(chosen, found, [_class_of(path) for path in found], per_class)
    return [found[index] for index in chosen]


def _check_classes(root: Path, classes: Sequence[str], known: list[str]) -> None:
    if not classes or len(set(classes)) < len(classes):
        raise DataError(f"{root}: expected at least one class and none twice, got {', '.join(classes) or 'none'}")
    for name in classes:
        if name not in known:
            near = suggest(name, [*known, "train", "held-out", "all"])
            raise DataError(
                f"{root}: {name!r} is neither a split (train, held-out, all) nor one of its {len(known)} class "
                f"folders{near}"
            )


def _classes(paths: Sequence[str]) -> list[str]:
    """Return the sub-folders of some paths, ordered by name."""
    return sorted({_class_of(path) for path in paths} - {""})


def _class_of(path: str) -> str:
    """Return the sub-folder that a path begins with; empty for a loose image."""
    return path.partition("/")[0] if "/" in path else ""
