"""Encode a set of images into shards of codes, see ``aimamba.data.shards``.

Until a shard is complete, each of its batches is a file of its own in ``parts/``. So an interrupted encoding goes on
where it stopped, and several processes can write at once.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt16
from tqdm import tqdm

from aimamba.checkpoints.sums import sum_of_file
from aimamba.config import check, first_difference, from_mapping, to_mapping
from aimamba.data.cache import store_array
from aimamba.data.code_captions import store_captions
from aimamba.data.code_sums import read_sums, write_sums
from aimamba.data.codes import encode_views, view_names
from aimamba.data.codes_meta import META_FILE, REMEDY, CodesMeta, read_meta
from aimamba.data.content import content_hash
from aimamba.data.folder import ImageFolder
from aimamba.data.images import ImageSet, has_captions
from aimamba.data.sets import Splits
from aimamba.data.shards import LABELS_FILE, fingerprint, load_array, read_shard
from aimamba.errors import ConfigError, DataError
from aimamba.files import write_atomically
from aimamba.models import VQModel
from aimamba.sharing import ALONE, Sharing

PARTS = "parts"
"""Folder of the batches of shards that are not complete."""

_SEEN_WITHIN = 90.0  # seconds


class Encoder:
    """Encodes ranges of images, in whichever process."""

    def __init__(self, tokenizer: VQModel, images: ImageSet, views: str) -> None:
        """Take what ``encode_views`` takes."""
        self.tokenizer, self.images, self.views = tokenizer, images, views

    def __call__(self, unit: range) -> tuple[UInt16[np.ndarray, "n v l"], Int64[np.ndarray, " n"]]:
        """Return the codes of some images, and which images they are of: others than asked for where one is broken."""
        codes = encode_views(self.tokenizer, self.images, unit, self.views)
        folder = self.images if isinstance(self.images, ImageFolder) else None
        return codes, np.array([index if folder is None else folder.stand_in(index) for index in unit], np.int64)

    def to(self, device: torch.device) -> "Encoder":
        """Return the same with the tokenizer on a device."""
        return Encoder(self.tokenizer.to(device), self.images, self.views)


def encode_to_shards(
    tokenizer: VQModel,
    images: ImageSet,
    folder: Path,
    *,
    views: str = "center",
    batch_size: int = 32,
    shard_pictures: int = 4096,
    progress: Callable[[int, int], None] | None = None,
    sharing: Sharing = ALONE,
) -> CodesMeta:
    """Encode the images whose codes ``folder`` does not hold yet.

    A new batch starts with every shard, so the bytes depend neither on where an earlier run was interrupted nor on who
    encodes which batch.

    Args:
        tokenizer: Encodes on its own device.
        images: The images; ``ten-crop`` needs an ``ImageFolder``.
        folder: Where to write; made if needed. Processes that share the work must all see it.
        views: Which views of each image, see ``view_names``.
        batch_size: Images encoded at once.
        shard_pictures: Images in a shard.
        progress: Called with (images done, number of images), in the first process.
        sharing: Who shares the work; by default this process does all of it.

    Returns:
        The content of ``meta.json``.

    Raises:
        ConfigError: The folder holds other codes, or these images do not have such views.
        DataError: There are no images; or not all processes see the same images and the same folder.
    """
    check(batch_size >= 1 and shard_pictures >= 1, "batch and shard must hold at least one image")
    meta = _describe(tokenizer, images, folder, views, shard_pictures)
    encoder, parts = Encoder(tokenizer, images, views), _Parts(folder, meta, batch_size)

    def begin() -> list[Any]:
        whole = replace(meta, images=content_hash(images))
        _begin(folder, whole, np.asarray(images.labels, np.int64))
        shards = parts.missing_shards()
        return [to_mapping(whole), _listing(images), _ends(shards), _ends(parts.missing(shards))]

    values, listing, shards, missing = sharing.once(begin)
    if first_difference(values, to_mapping(meta), ignore=("images",)) is not None or listing != _listing(images):
        raise DataError(f"{folder}: not all processes have the same images and tokenizer; give them the same")
    _wait_to_see(folder, lambda: read_meta(folder) is not None)
    left = [range(*ends) for ends in missing]
    done = len(images) - sum(map(len, left))

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(images))

    if sharing.is_first:
        advance(0)
    if sharing.cluster is not None:
        for batch, [codes, encoded] in sharing.cluster.results(left, encoder):
            parts.add(batch, codes, encoded)
            advance(len(batch))
    else:
        for batch in _taken(sharing, left, advance):
            parts.add(batch, *encoder(batch))
    for shard in _taken(sharing, [range(*ends) for ends in shards]):
        parts.join(shard, encoder)

    def end() -> None:
        _wait_to_see(folder, lambda: all(parts.is_there(range(*ends)) for ends in shards))
        parts.note_sums([range(*ends) for ends in shards])
        store_captions(folder, images, parts.replaced())
        parts.remove()

    sharing.once(end)
    return from_mapping(CodesMeta, values, where=str(folder))


def encode_splits(
    tokenizer: VQModel,
    images: Splits,
    folder: Path,
    *,
    views: str = "center",
    batch_size: int = 32,
    progress: bool = False,
    sharing: Sharing = ALONE,
) -> tuple[CodesMeta, CodesMeta]:
    """Encode training and held-out images into ``folder/train`` and ``folder/held-out``.

    Args:
        tokenizer: Encodes on its own device.
        images: Both splits.
        folder: Where to write; made if needed. An interrupted encoding is continued.
        views: Which views of each training image, see ``view_names``; of held-out images the centre view alone.
        batch_size: Images encoded at once.
        progress: Show a bar on stderr, in the first process.
        sharing: Who shares the work.

    Returns:
        The descriptions of both.

    Raises:
        ConfigError: The folder holds other codes, or these images do not have such views.
        DataError: See ``encode_to_shards``.
    """
    metas = []
    shown = progress and sharing.is_first
    for split, part, chosen in (("train", images.train, views), ("held-out", images.held_out, "center")):
        with tqdm(total=len(part), unit="image", desc=split, disable=not shown) as bar:
            metas.append(
                encode_to_shards(
                    tokenizer,
                    part,
                    folder / split,
                    views=chosen,
                    batch_size=batch_size,
                    progress=lambda done, _, bar=bar: bar.update(done - bar.n),  # type: ignore[misc]
                    sharing=sharing,
                )
            )
    return metas[0], metas[1]


class _Parts:
    """The batches of the shards that are not complete yet."""

    def __init__(self, folder: Path, meta: CodesMeta, batch_size: int) -> None:
        self._folder, self._meta, self._batch_size = folder, meta, batch_size

    def missing_shards(self) -> list[range]:
        """Return the images of each shard that is missing or damaged, or whose sum was not written any more."""
        sums, shards = read_sums(self._folder), [range(start, stop) for _, start, stop in self._meta.shards()]

        def is_whole(shard: range) -> bool:
            path = self._shard(shard)
            return self.is_there(shard) and (sums is None or sums.get(path.name) == sum_of_file(path))

        return [shard for shard in shards if not is_whole(shard)]

    def is_there(self, shard: range) -> bool:
        """Return whether a shard has been written."""
        return read_shard(self._shard(shard), self._meta, len(shard)) is not None

    def note_sums(self, shards: Sequence[range]) -> None:
        """Write the checksums of some shards."""
        sums = read_sums(self._folder)
        if sums is not None and shards:
            paths = [self._shard(shard) for shard in shards]
            write_sums(self._folder, sums | {path.name: sum_of_file(path) for path in paths})

    def batches(self, shard: range) -> list[range]:
        """Return the batches of a shard."""
        return [range(start, min(start + self._batch_size, shard.stop)) for start in shard[:: self._batch_size]]

    def missing(self, shards: Sequence[range]) -> list[range]:
        """Return the batches of some shards that are missing or damaged."""
        return [batch for shard in shards for batch in self.batches(shard) if self._read(batch) is None]

    def add(self, batch: range, codes: UInt16[np.ndarray, "n v l"], encoded: Int64[np.ndarray, " n"]) -> None:
        """Write a batch, and before it which of its images others have replaced."""
        path = self._path(batch)
        path.parent.mkdir(exist_ok=True)
        asked = np.array(batch, np.int64)
        if (other := encoded != asked).any():
            store_array(path.with_name(path.name.replace("codes", "replaced")), np.stack([asked, encoded], 1)[other])
        store_array(path, codes)

    def replaced(self) -> dict[int, int]:
        """Return which image has replaced which in the batches that are not removed yet."""
        noted = [load_array(path) for path in sorted((self._folder / PARTS).glob("replaced-*.npy"))]
        return {int(index): int(other) for pairs in noted if pairs is not None for index, other in pairs}

    def join(self, shard: range, encode: Encoder) -> None:
        """Write a shard from its batches; one that another machine has written may not be seen yet: encode it again."""
        batches = self.batches(shard)
        found = [encode(batch)[0] if (codes := self._read(batch)) is None else codes for batch in batches]
        store_array(self._shard(shard), np.concatenate(found))

    def remove(self) -> None:
        """Remove all batches; until the checksums are written, a shard can be joined from them again."""
        for pattern in ("codes-*.npy", "replaced-*.npy"):
            for path in (self._folder / PARTS).glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            (self._folder / PARTS).rmdir()

    def _shard(self, shard: range) -> Path:
        return self._folder / self._meta.shard_name(shard.start)

    def _path(self, batch: range) -> Path:
        return self._folder / PARTS / f"codes-{batch.start:010d}-{batch.stop:010d}.npy"

    def _read(self, batch: range) -> np.ndarray | None:
        return read_shard(self._path(batch), self._meta, len(batch))


def _taken(sharing: Sharing, units: Sequence[range], show: Callable[[int], object] | None = None) -> Iterator[range]:
    """Yield the ranges of images that this process is to do; it ends when all processes have done theirs."""
    taken = sharing.units(len(units), show)
    for number in taken:
        yield units[number]
        taken.advance(len(units[number]))
    taken.finish()


def _wait_to_see(folder: Path, is_there: Callable[[], bool]) -> None:
    """Wait until this machine sees what another one has written; a network disk shows it after a while.

    Raises:
        DataError: It does not.
    """
    deadline = time.monotonic() + _SEEN_WITHIN
    while not is_there():
        if time.monotonic() > deadline:
            raise DataError(
                f"{folder}: this machine does not see what the others have written there; name a folder on a disk that "
                "all machines share"
            )
        time.sleep(_SEEN_WITHIN / 100)


def _ends(units: Sequence[range]) -> list[tuple[int, int]]:
    return [(unit.start, unit.stop) for unit in units]


def _describe(tokenizer: VQModel, images: ImageSet, folder: Path, views: str, shard_pictures: int) -> CodesMeta:
    """Return the description of the codes, without the hash of the images."""
    names = view_names(views)
    if views == "ten-crop" and not isinstance(images, ImageFolder):
        raise ConfigError("views 'ten-crop' needs a folder of images; the named sets have images of one size only")
    if len(images) == 0:
        raise DataError(f"{folder}: there are no images to encode")
    side = images.size // tokenizer.config.downsampling
    return CodesMeta(
        tokenizer=fingerprint(tokenizer),
        codebook_size=tokenizer.config.codebook_size,
        grid=(side, side),
        size=images.size,
        class_names=images.class_names,
        views=names,
        pictures=len(images),
        shard_pictures=shard_pictures,
        captions=has_captions(images),
    )


def _listing(images: ImageSet) -> str:
    """Return a SHA-256 of labels and names, by which processes know that they see the same images."""
    digest = hashlib.sha256(np.asarray(images.labels).astype("<i8").tobytes())
    digest.update("\n".join(getattr(images, "names", ())).encode(errors="surrogateescape"))
    return digest.hexdigest()


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
    difference = first_difference(to_mapping(before), to_mapping(meta), ignore=("images", "captions"))
    if difference is not None and difference.key != "pictures":
        raise ConfigError(f"{folder} holds codes of another {difference.key}; {REMEDY}")
    other = ConfigError(
        f"{folder} holds codes of other images (another set, or one was added, changed or removed since); {REMEDY}"
    )
    if difference is not None:
        raise other
    if before.images is None:
        if any(read_shard(folder / name, meta, stop - start) is None for name, start, stop in meta.shards()):
            raise ConfigError(
                f"{folder} holds an unfinished encoding that does not say which images it is of (an earlier version "
                f"began it); {REMEDY}"
            )
        stored = load_array(folder / LABELS_FILE)
        if stored is None or not np.array_equal(stored, labels):
            raise other
    elif before.images != meta.images:
        raise other
