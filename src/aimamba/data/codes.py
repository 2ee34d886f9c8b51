"""Encode images into codes, which a generator trains on.

Shape letters: n images, v views of each, L codes of a view.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt8, UInt16
from torch import Tensor

from aimamba.config import check
from aimamba.data.caption_lines import CaptionLines
from aimamba.data.folder import ImageFolder
from aimamba.data.images import ImageSet, has_captions
from aimamba.data.order import CAPTION, ShuffledOrder
from aimamba.data.sheets import to_float
from aimamba.data.transforms import moved, ten_crop, to_array
from aimamba.errors import DataError
from aimamba.models import VQModel

VIEWS = ("center", "center-flip", "ten-crop", "moved-N")

_MOST_MOVED = 64

LARGEST_CODEBOOK = 1 << 16
"""Codes are kept in two bytes."""

READERS = 16
"""Threads that read at the same time where a disk would be waited for."""

_FINGERPRINT_IMAGES = 1000
_TEN_CROP_RANGES = (1.1, 1.05)  # LlamaGen's two folders of codes


class CodeBatch(NamedTuple):
    """Codes in raster order with the classes of their images."""

    codes: Int[Tensor, "b l"]
    labels: Int[Tensor, " b"]


class CaptionedBatch(NamedTuple):
    """Codes with classes and captions, which are tokens (B, T) or vectors (B, T, F)."""

    codes: Int[Tensor, "b l"]
    labels: Int[Tensor, " b"]
    captions: Tensor


@runtime_checkable
class Captions(Protocol):
    """The captions of the images of a set, in their order."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[str, ...]:
        """Return the captions of an image; empty if it has none."""


class CodeSet:
    """Codes of a set of images, in one or more views of each, in memory or mapped from files.

    Attributes:
        shards: The codes of consecutive images, each (some, v, L) uint16.
        labels: Class of each image, (n,).
        views: Number of views of an image.
        captions: Captions of the images; None if the set has none.
    """

    def __init__(
        self,
        codes: UInt16[np.ndarray, "n v l"] | Sequence[UInt16[np.ndarray, "_ v l"]],
        labels: Int64[np.ndarray, " n"],
        *,
        codebook_size: int | None = None,
        captions: Captions | None = None,
    ) -> None:
        """Make a set of codes in one piece or in shards of any length.

        Args:
            codes: See ``shards``; also one array.
            labels: Class of each image.
            codebook_size: Refuse larger codes when they are taken; None has been checked already.
            captions: Captions of each image; None if there are none.

        Raises:
            DataError: There are no codes, or not as many as labels or captions.
        """
        self.shards = [codes] if isinstance(codes, np.ndarray) else list(codes)
        self.labels = labels
        count = sum(len(shard) for shard in self.shards)
        if count == 0 or count != len(labels):
            raise DataError(
                f"a set of codes needs as many images as labels and at least one, got {count} and {len(labels)}"
            )
        self.views = self.shards[0].shape[1]
        self._ends = np.cumsum([len(shard) for shard in self.shards])
        self.codebook_size = codebook_size
        if captions is not None and len(captions) != count:
            raise DataError(f"a set of codes needs captions of every image, got {count} images and {len(captions)}")
        self.captions = captions

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def relabelled(self, labels: Sequence[int]) -> "CodeSet":
        """Return the same codes with ``labels[k]`` in the place of each label ``k``."""
        new = np.asarray(labels, np.int64)[self.labels]
        return CodeSet(self.shards, new, codebook_size=self.codebook_size, captions=self.captions)

    def take(self, indices: Sequence[int], views: Sequence[int]) -> Int[Tensor, "b l"]:
        """Return the codes of some images, each in one of its views.

        Raises:
            DataError: A code is not in the codebook.
        """
        rows = []
        for index, view in zip(indices, views, strict=True):
            number = int(np.searchsorted(self._ends, index, side="right"))
            rows.append(self.shards[number][index - self._ends[number], view])
        stacked = np.stack(rows)
        if self.codebook_size is not None and stacked.max() >= self.codebook_size:
            self._refuse(indices[int(stacked.max(axis=1).argmax())], int(stacked.max()), self.codebook_size)
        return torch.from_numpy(stacked.astype(np.int64))

    def caption(self, index: int, generator: np.random.Generator | None = None) -> str:
        """Return a caption of an image: one at random, or the first; empty if it has none."""
        texts = () if self.captions is None else self.captions[index]
        if not texts:
            return ""
        return texts[0 if generator is None else int(generator.integers(len(texts)))]

    def captioned_batches(
        self,
        read: Callable[[Sequence[str]], Tensor],
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        stride: int | None = None,
    ) -> Iterator[CaptionedBatch]:
        """Yield the batches of ``batches``, with one caption of each image.

        Args:
            read: Returns what the generator takes for some captions.
            batch_size: See ``batches``, like the following.
            seed: Also of the choice of captions.
            start: See there.
            stride: See there.
        """
        order, step = ShuffledOrder(len(self), seed), batch_size if stride is None else stride
        for number, batch in enumerate(self.batches(batch_size=batch_size, seed=seed, start=start, stride=stride)):
            positions = range(first := start + number * step, first + batch_size)
            texts = [self.caption(order.index(place), order.generator(place, CAPTION)) for place in positions]
            yield CaptionedBatch(*batch, read(texts))

    def _refuse(self, index: int, code: int, codebook_size: int) -> NoReturn:
        shard = self.shards[int(np.searchsorted(self._ends, index, side="right"))]
        raise out_of_range(getattr(shard, "filename", "codes"), code, codebook_size)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the labels, and of the first view and the captions of at most a thousand images."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), _FINGERPRINT_IMAGES)).astype(np.int64).tolist()
        digest = hashlib.sha256(f"{self.views}".encode())
        digest.update(self.labels.astype("<i8").tobytes())
        with ThreadPoolExecutor(READERS) as threads, read_at_random(*self.shards):
            for part in threads.map(lambda index: self.take([index], [0]), chosen):
                digest.update(part.numpy().astype("<i8").tobytes())
        if self.captions is not None:
            digest.update(json.dumps([self.captions[index] for index in chosen]).encode())
        return digest.hexdigest()

    def batches(self, *, batch_size: int, seed: int, start: int = 0, stride: int | None = None) -> Iterator[CodeBatch]:
        """Yield shuffled batches without end; the example at a position depends on ``(seed, position)`` alone.

        Args:
            batch_size: Examples in a batch.
            seed: Of the order and the views.
            start: Position of the first example.
            stride: From the first example of a batch to that of the next; by default ``batch_size``.
        """
        order = ShuffledOrder(len(self), seed)
        while True:
            positions = range(start, start + batch_size)
            indices = [order.index(position) for position in positions]
            views = [int(order.generator(position).integers(self.views)) for position in positions]
            yield CodeBatch(self.take(indices, views), torch.from_numpy(self.labels[indices]))
            start += batch_size if stride is None else stride


@contextmanager
def read_at_random(*shards: np.ndarray) -> Iterator[None]:
    """Let the system read no more than it is asked for while a few places of mapped files are read.

    Usually it reads 128 KiB for 512 bytes, which fills its memory in training, but is long to wait for at a start.
    """
    maps = [found for shard in shards if isinstance(found := getattr(shard, "_mmap", None), mmap.mmap)]
    if not hasattr(mmap, "MADV_RANDOM"):  # Windows
        maps = []
    for each in maps:
        each.madvise(mmap.MADV_RANDOM)
    yield
    for each in maps:
        each.madvise(mmap.MADV_NORMAL)


def out_of_range(place: object, code: int, codebook_size: int) -> DataError:
    """Return the error for a code that is not in the codebook."""
    return DataError(
        f"{place}: codes must lie in 0 to {codebook_size - 1}, got {code}; remove this file and run the same 'aimamba "
        "encode' again"
    )


def view_names(views: str) -> tuple[str, ...]:
    """Return the names of the views that ``views`` stands for.

    ``center`` is the centre crop; ``center-flip`` adds its mirror image; ``ten-crop`` is LlamaGen's twenty crops: four
    corners and the centre, plain and mirrored, of a centre crop 1.1 and 1.05 times as wide as the image; ``moved-8`` is
    the centre crop and eight of it moved and scaled a little, see ``transforms.moved``.

    Raises:
        ConfigError: There is no such choice.
    """
    if (number := _moved(views)) is not None:
        return ("center", *(f"moved-{view}" for view in range(1, number + 1)))
    check(views in VIEWS[:-1], f"views must be one of {', '.join(VIEWS)}, got {views!r}")
    if views == "ten-crop":
        return tuple(f"ten-crop-{scale}-{number}" for scale in _TEN_CROP_RANGES for number in range(10))
    return ("center",) if views == "center" else ("center", "center-flip")


@torch.no_grad()
def encode_views(tokenizer: VQModel, images: ImageSet, chosen: range, views: str) -> UInt16[np.ndarray, "n v l"]:
    """Encode some images in the views that ``view_names(views)`` lists, one batch for each view.

    Raises:
        ConfigError: The codebook has more codes than two bytes can hold.
    """
    size = tokenizer.config.codebook_size
    check(size <= LARGEST_CODEBOOK, f"codes are kept in two bytes: at most {LARGEST_CODEBOOK} codes, got {size}")
    device = tokenizer.device
    seen = np.stack([np.stack(_views(images, index, views)) for index in chosen])  # (B, v, S, S, 3)
    columns = []
    for view in range(seen.shape[1]):
        batch = torch.from_numpy(seen[:, view]).permute(0, 3, 1, 2)
        columns.append(tokenizer.encode(to_float(batch).to(device)).flatten(1).cpu().numpy())
    return np.stack(columns, axis=1).astype(np.uint16)


def _moved(views: str) -> int | None:
    """Return the N of ``moved-N``."""
    name, _, number = views.rpartition("-")
    fits = name == "moved" and number.isdecimal() and number.isascii() and len(number) < 4
    return int(number) if fits and 1 <= int(number) <= _MOST_MOVED else None


def _views(images: ImageSet, index: int, views: str) -> Sequence[UInt8[np.ndarray, "s s 3"]]:
    if views == "ten-crop":
        assert isinstance(images, ImageFolder)
        image = images.original(index)
        crops = [crop for scale in _TEN_CROP_RANGES for crop in ten_crop(image, images.size, crop_range=scale)]
        return [to_array(crop) for crop in crops]
    whole = images.image(index, None)
    if (number := _moved(views)) is not None:
        return [whole, *(moved(whole, np.random.default_rng([index, view])) for view in range(1, number + 1))]
    return [whole] if views == "center" else [whole, np.ascontiguousarray(whole[:, ::-1])]


def encode_images(
    tokenizer: VQModel,
    images: ImageSet,
    *,
    views: str = "center",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> CodeSet:
    """Encode every image once, in one or more views.

    Args:
        tokenizer: Encodes on its own device.
        images: The images.
        views: Which views of each image, see ``view_names``.
        batch_size: Images encoded at once.
        progress: Called with (images done, number of images).

    Raises:
        ConfigError: The codebook has more codes than two bytes can hold.
        DataError: There are no images.
    """
    if len(images) == 0:
        raise DataError("there are no images to encode")
    parts = []
    for start in range(0, len(images), batch_size):
        chosen = range(start, min(start + batch_size, len(images)))
        parts.append(encode_views(tokenizer, images, chosen, views))
        if progress is not None:
            progress(chosen.stop, len(images))
    captions = None
    if has_captions(images):
        captions = CaptionLines.of(images.captions(index) for index in range(len(images)))
    return CodeSet(np.concatenate(parts), np.asarray(images.labels, dtype=np.int64), captions=captions)
