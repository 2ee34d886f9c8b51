"""Where images come from: a folder, an ``.npz`` of ADM's layout, a named set or a model, all as streams of batches.

Images are bytes (n, s, s, 3), as in those files. No source holds them all.
"""

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from aimamba.config import check
from aimamba.data.avatars import STYLES, Avatars
from aimamba.data.files import find_images, open_image, read_sizes, suggest_sibling
from aimamba.data.splits import select
from aimamba.data.transforms import center_crop, to_array
from aimamba.errors import DataError, suggest
from aimamba.evaluation.npz import NpzSource
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline

AVATARS_PER_CLASS = {"train": 3000, "held-out": 500}
"""How many avatars of each style make a named set."""

_NAMED = re.compile(r"avatars-(\d+)(?::([^:]*))?(?::(\d+))?")
_SPLITS = ("train", "held-out")
_HELD_OUT = 0.05  # of a folder's images, as in training
_SHEET = "sheet.png"  # beside the images that ``aimamba sample`` writes


@runtime_checkable
class Source(Protocol):
    """A set of square images, in order.

    Attributes:
        name: As the user gave it.
        size: Side in pixels.
        class_names: Of the labels; empty where they have none.
    """

    name: str
    size: int
    class_names: tuple[str, ...]

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """Class of each image, or None."""

    def __len__(self) -> int:
        """How many images."""

    @property
    def identity(self) -> dict[str, Any] | None:
        """What the images depend on, for keeping their features; None for those not worth it."""

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """All images in order."""

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Some images."""
        ...


class _ByIndex(ABC):
    """Streams for sources that can give any image."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Some images."""

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """All images in order."""
        for start in range(0, len(self), batch_size):
            yield self.take(range(start, min(start + batch_size, len(self))))


class AvatarSource(_ByIndex):
    """Avatars by the name ``avatars-SIZE:SPLIT``, or ``avatars-SIZE:SPLIT:N`` for N of each style."""

    def __init__(self, name: str, size: int, split: str, per_class: int | None = None, *, progress: bool = False):
        """Draw them, or find them drawn."""
        self.name = name
        self.size = size
        amount = AVATARS_PER_CLASS[split] if per_class is None else per_class
        self._avatars = Avatars(size, split, amount, STYLES, progress=progress)  # type: ignore[arg-type]
        self.labels = self._avatars.labels
        self.class_names = self._avatars.class_names
        self._identity = {"avatars": [size, split, amount, *self.class_names]}

    def __len__(self) -> int:
        """How many images."""
        return len(self._avatars)

    @property
    def identity(self) -> dict[str, Any]:
        """The drawing packages' versions too."""
        makers = ("dicebear-core", "dicebear-styles", "resvg-py")
        return {**self._identity, **{maker: version(maker) for maker in makers}}

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Some images."""
        return np.stack([self._avatars.image(index) for index in indices])


class FolderSource(_ByIndex):
    """Image files, ordered by name; sub-folders are classes. What ``aimamba sample`` calls sheet.png is left out."""

    def __init__(self, name: str, root: Path, split: str = "all", *, size: int | None = None):
        """Find the files and read their headers.

        Args:
            name: As the user gave it.
            root: The folder.
            split: ``all``, or ``train`` or ``held-out`` by the files' names, as in training.
            size: Cut every image to its centre square and scale it down to this side; by default none may need it.

        Raises:
            DataError: There is no image, one is broken or smaller than ``size``, or they differ and no size is given.
        """
        self.name = name
        self._root = root
        found = [path.relative_to(root).as_posix() for path in find_images(root) if path.name != _SHEET]
        self._names = [found[index] for index in select(found, split, _HELD_OUT)]  # type: ignore[arg-type]
        if not self._names:
            raise DataError(f"{name}: there are no images; give a folder of PNG, JPEG, WebP, BMP, GIF or TIFF files")
        self._cropped = size is not None
        self.size = self._side(size)
        folders = [path.partition("/")[0] if "/" in path else "" for path in self._names]
        self.class_names = () if "" in folders else tuple(sorted({path.partition("/")[0] for path in found}))
        self.labels = None
        if self.class_names:
            self.labels = np.array([self.class_names.index(folder) for folder in folders], np.int64)

    def __len__(self) -> int:
        """How many images."""
        return len(self._names)

    @property
    def identity(self) -> dict[str, Any]:
        """Place, names, lengths and times of the files."""
        stats = [(name, (self._root / name).stat()) for name in self._names]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        return {"folder": str(self._root.resolve()), "size": self.size, "cropped": self._cropped, "files": files}

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Some images."""
        images = [open_image(self._root / self._names[index]) for index in indices]
        return np.stack([to_array(center_crop(image, self.size) if self._cropped else image) for image in images])

    def _side(self, wanted: int | None) -> int:
        """The side asked for, if no image is smaller, or the one that all have."""
        paths = [self._root / name for name in self._names]
        first: tuple[int, int] | None = None
        for path, size in zip(paths, read_sizes(paths), strict=True):
            if isinstance(size, DataError):
                raise size
            first = first or size
            image = f"{path}: the image is {size[0]} x {size[1]} pixels"
            if wanted is not None and min(size) < wanted:
                raise DataError(f"{image} and would have to be enlarged to {wanted}: remove it, or use a smaller size")
            if wanted is None and (size != first or size[0] != size[1]):
                raise DataError(
                    f"{image}, but all must be squares of one size ({paths[0].name} is {first[0]} x {first[1]}): "
                    "give --size to cut and scale them"
                )
        assert first is not None
        return wanted or first[0]


class ModelSource:
    """Samples of a model, drawn as they are asked for: image i has label i and seed ``config.seed + i``."""

    def __init__(
        self, name: str, pipeline: Pipeline, labels: Int64[np.ndarray, " n"], config: SamplingConfig, batch_size: int
    ):
        """Name what is to be drawn, ``batch_size`` images at once."""
        self.name = name
        self.size = pipeline.image_size
        self.labels = labels
        self.class_names = pipeline.class_names
        self.identity = None
        self._pipeline = pipeline
        self.config = config
        self._batch_size = batch_size

    def guided(self, scale: float) -> "ModelSource":
        """The same draws at another guidance scale."""
        config = replace(self.config, cfg_scale=scale)
        return ModelSource(f"{self.name} at {scale:g}", self._pipeline, self.labels, config, self._batch_size)

    def __len__(self) -> int:
        """How many images."""
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """All images in order; drawn in batches of the model's own, given in batches of ``batch_size``."""
        for start in range(0, len(self), self._batch_size):
            drawn = self.take(range(start, min(start + self._batch_size, len(self))))
            yield from (drawn[first : first + batch_size] for first in range(0, len(drawn), batch_size))

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Draw some images."""
        starts = range(0, len(indices), self._batch_size)
        return np.concatenate([self._draw(indices[start : start + self._batch_size]) for start in starts])

    def _draw(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        chosen = torch.from_numpy(self.labels[list(indices)])
        seeds = [self.config.seed + index for index in indices]
        [codes] = deque(self._pipeline.generate(chosen, self.config, seeds=seeds), maxlen=1)  # the last
        return self._pipeline.decode(codes).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def make_labels(labelling: str, n: int, classes: int, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """Classes of ``n`` samples.

    Args:
        labelling: ``balanced`` takes all classes in turn; ``random`` draws each image's uniformly, as published FIDs
            do.
        n: How many.
        classes: To choose from.
        seed: Of the draw.

    Raises:
        ConfigError: There is no such labelling, or n is below 1.
    """
    check(n >= 1, f"-n must be at least 1, got {n}")
    check(labelling in ("balanced", "random"), f"--labels must be balanced or random, got {labelling!r}")
    if labelling == "balanced":
        return np.arange(n, dtype=np.int64) % classes
    return np.random.default_rng(seed).integers(classes, size=n)


def open_source(text: str, *, size: int | None = None, progress: bool = False) -> Source:
    """Open a set of images by what the user calls it.

    Args:
        text: ``avatars-64:held-out`` or ``avatars-64:train`` (500 and 3,000 of each style; ``avatars-64:train:10`` for
            10), an ``.npz`` file, or a folder, perhaps with ``:train`` or ``:held-out`` behind it.
        size: Cut a folder's images to squares of this side.
        progress: Show a bar on stderr while avatars are drawn.

    Raises:
        ConfigError: The size is below 1.
        DataError: It is none of these or cannot be read.
    """
    check(size is None or size >= 1, f"--size must be at least 1 pixel, got {size}")
    if named := _NAMED.fullmatch(text):
        side, split, amount = named.groups()
        if split not in _SPLITS:
            raise DataError(f"{text}: name a split, avatars-{side}:held-out or avatars-{side}:train")
        return AvatarSource(text, int(side), split, int(amount) if amount else None, progress=progress)
    folder, _, split = text.rpartition(":")
    if split not in _SPLITS:
        folder, split = text, "all"
    path = Path(folder).expanduser()
    if not path.exists():
        near = suggest_sibling(path) or suggest(text, ["avatars-64:held-out", "avatars-64:train"])
        raise DataError(f"{text}: no such folder, .npz file or named set{near}")
    if path.suffix == ".npz" and path.is_file():
        return NpzSource(text, path)
    if not path.is_dir():
        raise DataError(f"{text}: expected a folder of images, an .npz file or a named set such as avatars-64:train")
    return FolderSource(text, path, split, size=size)
