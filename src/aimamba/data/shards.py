"""Codes on disk: memory-mapped shards from which a generator trains without the images.

A folder of codes has a sub-folder for each split with ``meta.json``, ``sums.json``, ``labels.npy``,
``codes-00000.npy`` and so on; each shard is (images, views, L) with two bytes a code. ``meta.json`` is written before
the shards and describes all of them, so an interrupted encoding continues where it stopped and ends with the same
bytes. It holds a hash of the images, so an encoding never goes on with others.

Shape letters: n images, v views of each, L codes of a view.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from aimamba.checkpoints.sums import sum_of_file
from aimamba.config import check, first_difference, to_mapping
from aimamba.data.cache import store_array
from aimamba.data.code_sums import check_sum, read_sums, write_sums
from aimamba.data.codes import (
    LARGEST_CODEBOOK,
    READERS,
    CodeSet,
    encode_views,
    out_of_range,
    read_at_random,
    view_names,
)
from aimamba.data.codes_meta import META_FILE, REMEDY, CodesMeta, read_meta
from aimamba.data.content import content_hash
from aimamba.data.folder import ImageFolder
from aimamba.data.images import ImageSet
from aimamba.data.sets import Splits
from aimamba.errors import ConfigError, DataError
from aimamba.files import write_atomically
from aimamba.models import VQModel

LABELS_FILE = "labels.npy"
_CHECKED_AT_ONCE = 1 << 28  # bytes


def fingerprint(tokenizer: VQModel) -> str:
    """Return ``tokenizer.code_fingerprint()``, by which codes know the tokenizer that made them."""
    return tokenizer.code_fingerprint()


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
    """Encode the images whose codes ``folder`` does not hold yet.

    A new batch starts with every shard, so the bytes do not depend on where an earlier run was interrupted.

    Args:
        tokenizer: Encodes on its own device.
        images: The images; ``ten-crop`` needs an ``ImageFolder``.
        folder: Where to write; made if needed.
        views: Which views of each image, see ``view_names``.
        batch_size: Images encoded at once.
        shard_pictures: Images in a shard.
        progress: Called with (images done, number of images).

    Returns:
        The content of ``meta.json``.

    Raises:
        ConfigError: The folder holds other codes, or these images do not have such views.
        DataError: There are no images.
    """
    check(batch_size >= 1 and shard_pictures >= 1, "batch and shard must hold at least one image")
    names = view_names(views)
    if views == "ten-crop" and not isinstance(images, ImageFolder):
        raise ConfigError("views 'ten-crop' needs a folder of images; the named sets have images of one size only")
    if len(images) == 0:
        raise DataError(f"{folder}: there are no images to encode")
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
        images=content_hash(images),
    )
    _begin(folder, meta, np.asarray(images.labels, np.int64))
    sums = read_sums(folder)
    for name, start, stop in meta.shards():
        path = folder / name
        is_there = _read_shard(path, meta, stop - start) is not None
        if not is_there or (sums is not None and sums.get(name) != sum_of_file(path)):
            parts = []
            for first in range(start, stop, batch_size):
                chosen = range(first, min(first + batch_size, stop))
                parts.append(encode_views(tokenizer, images, chosen, views))
                if progress is not None:
                    progress(chosen.stop, len(images))
            store_array(path, np.concatenate(parts))
            if sums is not None:
                sums[name] = sum_of_file(path)
                write_sums(folder, sums)
        if progress is not None:
            progress(stop, len(images))
    return meta


def encode_splits(
    tokenizer: VQModel,
    images: Splits,
    folder: Path,
    *,
    views: str = "center",
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[CodesMeta, CodesMeta]:
    """Encode training and held-out images into ``folder/train`` and ``folder/held-out``.

    Args:
        tokenizer: Encodes on its own device.
        images: Both splits.
        folder: Where to write; made if needed. An interrupted encoding is continued.
        views: Which views of each training image, see ``view_names``; of held-out images the centre view alone.
        batch_size: Images encoded at once.
        progress: Show a bar on stderr.

    Returns:
        The descriptions of both.

    Raises:
        ConfigError: The folder holds other codes, or these images do not have such views.
    """
    metas = []
    for split, part, chosen in (("train", images.train, views), ("held-out", images.held_out, "center")):
        with tqdm(total=len(part), unit="image", desc=split, disable=not progress) as bar:
            metas.append(
                encode_to_shards(
                    tokenizer,
                    part,
                    folder / split,
                    views=chosen,
                    batch_size=batch_size,
                    progress=lambda done, _, bar=bar: bar.update(done - bar.n),  # type: ignore[misc]
                )
            )
    return metas[0], metas[1]


class CodeSplits(NamedTuple):
    """Both splits of a folder of codes.

    Attributes:
        meta: Description of the training codes; grid and classes are those of both.
        train: The codes to train on.
        held_out: The codes to evaluate on.
    """

    meta: CodesMeta
    train: CodeSet
    held_out: CodeSet


def open_code_splits(folder: Path, tokenizer: VQModel | None = None) -> CodeSplits:
    """Open both splits that ``encode_splits`` wrote.

    Raises:
        DataError: See ``open_codes``; or the two differ in tokenizer, grid or classes.
    """
    meta, train = open_codes(folder / "train", tokenizer)
    meta_of_held_out, held_out = open_codes(folder / "held-out", tokenizer)
    names = {"class_names": "classes"}
    for key in ("tokenizer", "codebook_size", "grid", "size", "class_names"):
        if getattr(meta, key) != getattr(meta_of_held_out, key):
            raise DataError(f"{folder}: train and held-out differ in {names.get(key, key)}; encode both together")
    return CodeSplits(meta, train, held_out)


def open_codes(folder: Path, tokenizer: VQModel | None = None) -> tuple[CodesMeta, CodeSet]:
    """Open the codes of one split, memory-mapped.

    Codes of up to 256 MiB are read and compared with their checksums at once. Of more the first and the last image of
    every shard are looked at, and the others when they are taken: reading them all would take a start of a run minutes.
    ``encode_to_shards`` compares all of them.

    Args:
        folder: The folder of the split.
        tokenizer: Refuse codes that another tokenizer made.

    Raises:
        DataError: The folder is missing, unfinished or damaged, its labels or codes are out of range, or another
            tokenizer made its codes.
    """
    meta = read_meta(folder)
    if meta is None:
        raise DataError(f"{folder}: there is no {META_FILE}; make codes with 'aimamba encode'")
    if tokenizer is not None and meta.tokenizer != fingerprint(tokenizer):
        raise DataError(
            f"{folder}: these codes were written by another tokenizer ({meta.tokenizer[:12]}) than the one given "
            f"({fingerprint(tokenizer)[:12]}); give that one, or remove the folder and encode again"
        )
    if tokenizer is not None and meta.codebook_size != tokenizer.config.codebook_size:
        raise DataError(
            f"{folder / META_FILE}: codebook_size is {meta.codebook_size}, but the tokenizer has "
            f"{tokenizer.config.codebook_size} codes; the file was changed: encode again"
        )
    labels = _load(folder / LABELS_FILE)
    if labels is None:
        raise DataError(f"{folder / LABELS_FILE}: missing or cut short; encode again to replace it")
    if labels.shape != (meta.pictures,) or labels.dtype != np.int64:
        raise DataError(
            f"{folder / LABELS_FILE}: holds {labels.dtype} of shape {labels.shape}, expected int64 of shape "
            f"({meta.pictures},); encode again to replace it"
        )
    if labels.min() < 0 or labels.max() >= len(meta.class_names):
        raise DataError(
            f"{folder / LABELS_FILE}: labels must lie in 0 to {len(meta.class_names) - 1}, got {labels.min()} to "
            f"{labels.max()}; encode again"
        )
    parts = list(meta.shards())
    whole = 2 * meta.pictures * len(meta.views) * meta.grid[0] * meta.grid[1] <= _CHECKED_AT_ONCE

    sums = read_sums(folder)
    for name in (LABELS_FILE, META_FILE):
        check_sum(folder / name, sums)

    def open_shard(part: tuple[str, int, int]) -> np.ndarray:
        name, start, stop = part
        shard = _read_shard(folder / name, meta, stop - start)
        if shard is None:
            raise DataError(f"{folder / name}: missing or cut short; run the same 'aimamba encode' again to finish it")
        if meta.codebook_size < LARGEST_CODEBOOK:
            if whole:
                largest = int(shard.max())
            else:
                with read_at_random(shard):
                    largest = max(int(shard[0].max()), int(shard[-1].max()))
            if largest >= meta.codebook_size:
                raise out_of_range(folder / name, largest, meta.codebook_size)
        if whole:
            check_sum(folder / name, sums)
        return shard

    with ThreadPoolExecutor(READERS) as threads:
        shards = list(threads.map(open_shard, parts))
    return meta, CodeSet(shards, np.array(labels), codebook_size=None if whole else meta.codebook_size)


def _begin(folder: Path, meta: CodesMeta, labels: Int64[np.ndarray, " n"]) -> None:
    """Write the description of the shards, or check that the folder has the same one."""
    before = read_meta(folder)
    if before is not None:
        _check_same(folder, before, meta, labels)
        if before.images is None:
            return  # complete, and made before images had a hash: it stays as it is
    elif any(folder.glob("codes-*.npy")):
        raise ConfigError(f"{folder} holds codes but no {META_FILE}: of which images? {REMEDY}")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_mapping(meta), indent=2, ensure_ascii=False) + "\n"
    store_array(folder / LABELS_FILE, labels)
    sums = read_sums(folder)
    if sums is not None or before is None:  # an earlier version wrote none
        own = {LABELS_FILE: sum_of_file(folder / LABELS_FILE), META_FILE: hashlib.sha256(text.encode()).hexdigest()}
        write_sums(folder, {**(sums or {}), **own})
    write_atomically(folder / META_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _check_same(folder: Path, before: CodesMeta, meta: CodesMeta, labels: Int64[np.ndarray, " n"]) -> None:
    """Refuse to go on with the codes of other images or another tokenizer."""
    difference = first_difference(to_mapping(before), to_mapping(meta), ignore=("images",))
    if difference is not None and difference.key != "pictures":
        raise ConfigError(f"{folder} holds codes of another {difference.key}; {REMEDY}")
    other = ConfigError(
        f"{folder} holds codes of other images (another set, or one was added, changed or removed since); {REMEDY}"
    )
    if difference is not None:
        raise other
    if before.images is None:
        if any(_read_shard(folder / name, meta, stop - start) is None for name, start, stop in meta.shards()):
            raise ConfigError(
                f"{folder} holds an unfinished encoding that does not say which images it is of (an earlier version "
                f"began it); {REMEDY}"
            )
        stored = _load(folder / LABELS_FILE)
        if stored is None or not np.array_equal(stored, labels):
            raise other
    elif before.images != meta.images:
        raise other


def _load(path: Path) -> np.ndarray | None:
    """Map an array into memory; None if the file is missing or damaged."""
    if not path.is_file():  # opening a pipe would wait for ever
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # a header is Python source, and damaged it raises whatever Python's parser does
        return None
    return array if isinstance(array, np.ndarray) else None


def _read_shard(path: Path, meta: CodesMeta, images: int) -> np.ndarray | None:
    shard = _load(path)
    expected = (images, len(meta.views), meta.grid[0] * meta.grid[1])
    return shard if shard is not None and shard.shape == expected and shard.dtype == np.uint16 else None
