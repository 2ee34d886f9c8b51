"""Codes on disk: memory-mapped shards from which a generator trains without the images.

A folder of codes has a sub-folder for each split with ``meta.json``, ``sums.json``, ``labels.npy``,
``codes-00000.npy`` and so on; each shard is (images, views, L) with two bytes a code. If the images have captions,
``captions.jsonl`` has a line for each image, in their order (see ``caption_lines``). ``meta.json`` is written before
the shards and describes all of them; it holds a hash of the images, so an encoding never goes on with others.
``aimamba.data.encoding`` writes them.

Shape letters: n images, v views of each, L codes of a view.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from aimamba.data.caption_lines import CAPTIONS_FILE, CaptionLines
from aimamba.data.code_sums import check_sum, read_sums
from aimamba.data.codes import LARGEST_CODEBOOK, READERS, CodeSet, out_of_range, read_at_random
from aimamba.data.codes_meta import META_FILE, CodesMeta, read_meta
from aimamba.errors import DataError
from aimamba.models import VQModel

LABELS_FILE = "labels.npy"
_CHECKED_AT_ONCE = 1 << 28  # bytes
_PARSING = Lock()
"""Held while a header is parsed: it is Python source, and before Python 3.11.9 parsers in two threads disturb each
other (SystemError, https://github.com/python/cpython/issues/106905), so that a sound file would look damaged."""


def fingerprint(tokenizer: VQModel) -> str:
    """Return ``tokenizer.code_fingerprint()``, by which codes know the tokenizer that made them."""
    return tokenizer.code_fingerprint()


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
    labels = load_array(folder / LABELS_FILE)
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
        shard = read_shard(folder / name, meta, stop - start)
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
    captions = None
    if meta.captions:
        captions = CaptionLines.open(folder / CAPTIONS_FILE)
        if captions.lines.nbytes <= _CHECKED_AT_ONCE:
            check_sum(folder / CAPTIONS_FILE, sums)
    size = None if whole else meta.codebook_size
    return meta, CodeSet(shards, np.array(labels), codebook_size=size, captions=captions)


def load_array(path: Path) -> np.ndarray | None:
    """Map an array into memory; None if the file is missing or damaged.

    Raises:
        DataError: The system does not let it be read.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        return None
    try:
        with _PARSING:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except OSError as error:  # too many open files, no permission, a disk that fails: encoding again would not help
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception:  # a header is Python source, and damaged it raises whatever Python's parser does
        return None
    return array if isinstance(array, np.ndarray) else None


def read_shard(path: Path, meta: CodesMeta, images: int) -> np.ndarray | None:
    """Map the codes of some images into memory; None if the file is missing, damaged or holds something else."""
    shard = load_array(path)
    expected = (images, len(meta.views), meta.grid[0] * meta.grid[1])
    return shard if shard is not None and shard.shape == expected and shard.dtype == np.uint16 else None
