"""Codes on disk: memory-mapped shards from which a generator trains without the images.

A folder of codes holds, for each split, ``meta.json``, ``labels.npy`` and ``codes-00000.npy`` and so on, each shard
(images, views, L) in two bytes a code. ``meta.json`` is written first and says what the shards will hold, so an
encoding that was interrupted goes on where it stopped and ends with the same bytes.

Shape letters: n images, v views of each, L codes of a view.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from aimamba.config import check, first_difference, from_mapping, to_mapping
from aimamba.data.cache import store_array
from aimamba.data.codes import CodeSet, encode_views, view_names
from aimamba.data.folder import ImageFolder
from aimamba.data.sets import ImageSet
from aimamba.errors import ConfigError, DataError
from aimamba.files import write_atomically
from aimamba.models import VQModel

META_FILE, LABELS_FILE = "meta.json", "labels.npy"


@dataclass(frozen=True, kw_only=True)
class CodesMeta:
    """What a folder of codes holds.

    Attributes:
        tokenizer: Fingerprint of the tokenizer that wrote the codes, see ``fingerprint``.
        codebook_size: Codes lie below it.
        grid: Rows and columns of codes.
        size: Side of the images in pixels.
        class_names: Names of the labels.
        views: Names of the views of an image, in the order of their axis.
        pictures: How many images there are.
        shard_pictures: Images of a shard; the last one may have fewer.
    """

    tokenizer: str
    codebook_size: int
    grid: tuple[int, ...]
    size: int
    class_names: tuple[str, ...]
    views: tuple[str, ...]
    pictures: int
    shard_pictures: int

    def shards(self) -> Iterator[tuple[str, int, int]]:
        """Name of every shard, its first image, and the one behind its last."""
        for number, start in enumerate(range(0, self.pictures, self.shard_pictures)):
            yield f"codes-{number:05d}.npy", start, min(start + self.shard_pictures, self.pictures)


def fingerprint(tokenizer: VQModel) -> str:
    """SHA-256 of a tokenizer's config and of the float32 weights that decide an image's codes.

    It is the same for equal models, wherever they are stored, and for those that differ in the decoder alone.
    """
    return tokenizer.fingerprint(("encoder.", "to_code.", "codebook"))


def encode_to_shards(
    tokenizer: VQModel,
    images: ImageSet,
    folder: Path,
    *,
    views: str = "center",
    batch_size: int = 32,
    shard_pictures: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> CodesMeta:
    """Encode every image into ``folder``, or what is missing there.

    Batches start with the shard, so the bytes do not depend on where an earlier run was interrupted.

    Args:
        tokenizer: On the device where the work should be done.
        images: What to encode; ``ten-crop`` needs a folder of images.
        folder: Where to write; made if need be.
        views: Which views of each image.
        batch_size: Images at once.
        shard_pictures: Images of a shard.
        progress: Called with (images done, images in all).

    Raises:
        ConfigError: The folder holds other codes, or the views cannot be had of these images.
    """
    check(batch_size >= 1 and shard_pictures >= 1, "batch and shard must hold at least one image")
    names = view_names(views)
    if views == "ten-crop" and not isinstance(images, ImageFolder):
        raise ConfigError("views 'ten-crop' needs a folder of images; those of the named sets have just one size")
    side = images.size // tokenizer.config.downsampling
    meta = CodesMeta(
        tokenizer=fingerprint(tokenizer),
        codebook_size=tokenizer.config.codebook_size,
        grid=(side, side),
        size=images.size,
        class_names=images.class_names,
        views=names,
        pictures=len(images),
        shard_pictures=shard_pictures,
    )
    _begin(folder, meta, np.asarray(images.labels, np.int64))
    for name, start, stop in meta.shards():
        path = folder / name
        if _read_shard(path, meta, stop - start) is None:
            parts = []
            for first in range(start, stop, batch_size):
                chosen = range(first, min(first + batch_size, stop))
                parts.append(encode_views(tokenizer, images, chosen, views))
                if progress is not None:
                    progress(chosen.stop, len(images))
            store_array(path, np.concatenate(parts))
        if progress is not None:
            progress(stop, len(images))
    return meta


def open_codes(folder: Path, tokenizer: VQModel | None = None) -> tuple[CodesMeta, CodeSet]:
    """Open a finished folder of codes, memory-mapped.

    Args:
        folder: Of one split.
        tokenizer: Refuse codes that another one wrote.

    Raises:
        DataError: The folder is missing, unfinished or damaged, its labels are out of range, or its codes are another
            tokenizer's.
    """
    meta = _read_meta(folder)
    if meta is None:
        raise DataError(f"{folder}: no {META_FILE} there; make codes with 'aimamba encode'")
    if tokenizer is not None and meta.tokenizer != fingerprint(tokenizer):
        raise DataError(
            f"{folder}: these codes were written by another tokenizer ({meta.tokenizer[:12]}) than the one given "
            f"({fingerprint(tokenizer)[:12]}); give that one, or remove the folder and encode again"
        )
    labels = _load(folder / LABELS_FILE)
    if labels is None or labels.shape != (meta.pictures,) or labels.dtype != np.int64:
        raise DataError(f"{folder / LABELS_FILE}: missing or cut short; encode again to mend it")
    if labels.min() < 0 or labels.max() >= len(meta.class_names):
        raise DataError(f"{folder / LABELS_FILE}: labels must lie in 0 to {len(meta.class_names) - 1}; encode again")
    shards = []
    for name, start, stop in meta.shards():
        shard = _read_shard(folder / name, meta, stop - start)
        if shard is None:
            raise DataError(f"{folder / name}: missing or cut short; run the same 'aimamba encode' again to finish it")
        shards.append(shard)
    return meta, CodeSet(shards, np.array(labels))


def _begin(folder: Path, meta: CodesMeta, labels: Int64[np.ndarray, " n"]) -> None:
    """Write what the shards will hold, or check that the folder is about the same."""
    before = _read_meta(folder)
    difference = None if before is None else first_difference(to_mapping(before), to_mapping(meta))
    if difference is not None:
        raise ConfigError(f"{folder} holds codes of another {difference.key}; give another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_mapping(meta), indent=2, ensure_ascii=False) + "\n"
    store_array(folder / LABELS_FILE, labels)
    write_atomically(folder / META_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _read_meta(folder: Path) -> CodesMeta | None:
    path = folder / META_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return from_mapping(CodesMeta, values, where=str(path))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, ConfigError) as error:
        raise DataError(f"{path}: not the description of a folder of codes; encode again in another --out") from error


def _load(path: Path) -> np.ndarray | None:
    """Map an array, if it is there and whole."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _read_shard(path: Path, meta: CodesMeta, images: int) -> np.ndarray | None:
    shard = _load(path)
    expected = (images, len(meta.views), meta.grid[0] * meta.grid[1])
    return shard if shard is not None and shard.shape == expected and shard.dtype == np.uint16 else None
