"""Codes of images, to compare samples with training images as their tokenizer sees both.

Shape letters: n and m images, v views of each, L codes of a view.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from aimamba.data.images import split
from aimamba.data.sheets import to_float
from aimamba.errors import DataError
from aimamba.evaluation.sources import Source
from aimamba.evaluation.stored import StoredArrays
from aimamba.pipeline import Pipeline
from aimamba.sharing import ALONE, Sharing

_QUERIES = 16  # compared with all keys at once
_BATCH = 32  # images encoded at once


class CodeCopying(NamedTuple):
    """Whether samples have the codes of training images, mirrored or not.

    Attributes:
        equal: Share of the samples whose codes are all those of one training image.
        equal_held_out: The same of held-out images; above 0 where the sets share images.
        differing: Median number of codes in which a sample differs from the training image with the most equal codes.
        differing_held_out: The same of held-out images.
        codes: Codes of an image, L.
    """

    equal: float
    equal_held_out: float
    differing: float
    differing_held_out: float
    codes: int


def compare_codes(samples: Int[Tensor, "n l"], held_out: Int[Tensor, "m l"], train: Int[Tensor, "k l"]) -> CodeCopying:
    """Compare samples and held-out images with training images, code by code."""
    of_samples, of_held_out = (differing_codes(queries, train).double() for queries in (samples, held_out))
    return CodeCopying(
        equal=float((of_samples == 0).double().mean()),
        equal_held_out=float((of_held_out == 0).double().mean()),
        differing=float(of_samples.quantile(0.5)),
        differing_held_out=float(of_held_out.quantile(0.5)),
        codes=samples.shape[1],
    )


def differing_codes(queries: Int[Tensor, "n l"], keys: Int[Tensor, "m l"]) -> Int[Tensor, " n"]:
    """Return the number of codes in which each row differs from the most similar row of ``keys``."""
    columns = keys.T.contiguous()
    most = []
    for rows in queries.split(_QUERIES):
        equal = torch.zeros(len(rows), len(keys), dtype=torch.int32, device=keys.device)
        for position, codes in enumerate(columns):
            equal += codes == rows[:, position, None]
        most.append(equal.amax(dim=1))
    return queries.shape[1] - torch.cat(most)


def encode_source(
    source: Source,
    pipeline: Pipeline,
    *,
    mirrored: bool = False,
    progress: bool = False,
    sharing: Sharing = ALONE,
) -> Int[Tensor, "n v l"]:
    """Return the codes of all images by the model's tokenizer; they are cached.

    Args:
        source: The images.
        pipeline: Holds the tokenizer.
        mirrored: Encode the mirror image of each as a second view.
        progress: Show a bar on stderr.
        sharing: The processes that share the work; all of them get the codes.

    Raises:
        DataError: The images have another size than the model's.
    """
    if source.size != pipeline.image_size:
        raise DataError(
            f"{source.name} has images of {source.size} x {source.size} pixels, the model's have "
            f"{pipeline.image_size}: give images of that size (--size scales folders), or --train none"
        )
    identity, shape = source.identity, (len(source), 1 + mirrored, pipeline.grid**2)
    codes = np.full(shape, -1, np.int32)
    kept = None
    if identity is not None:
        kept = StoredArrays("codes", {"pictures": identity, "mirrored": mirrored, **_tokenizer(pipeline)})
        if sharing.is_first and (found := kept.load({"codes": shape})) and _are_codes(found[0]["codes"], pipeline):
            codes = found[0]["codes"]
    if (sharing.union(codes) >= 0).all():
        return torch.from_numpy(codes)
    batches = source.units(_BATCH)
    with tqdm(total=len(source), desc=f"encoding {source.name}", unit="image", disable=not progress) as bar:
        units = sharing.units(len(batches), bar.update)
        chosen: deque[range] = deque()

        def taken() -> Iterator[range]:
            for number in units:
                chosen.append(batches[number])
                yield batches[number]

        for images in source.read(taken()):
            views = [images, images[:, :, ::-1]] if mirrored else [images]
            unit = chosen.popleft()
            codes[unit.start : unit.stop] = torch.stack([_encode(view, pipeline) for view in views], dim=1).numpy()
            units.advance(len(images))
        units.finish()
    sharing.union(codes)
    if kept is not None and sharing.is_first:
        kept.store({"codes": codes})
    return torch.from_numpy(codes)


class Reconstructions:
    """Images as the tokenizer reconstructs them, in the order of their source."""

    def __init__(self, source: Source, codes: Int[Tensor, "n l"], pipeline: Pipeline) -> None:
        """Set what to decode.

        Args:
            source: The originals.
            codes: Their codes.
            pipeline: Holds the tokenizer.
        """
        self.name = f"{source.name}, reconstructed"
        self.size = pipeline.image_size
        self.labels = source.labels
        self.class_names = source.class_names
        self._source = source
        self._codes = codes
        self._pipeline = pipeline

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._codes)

    @property
    def identity(self) -> dict[str, Any] | None:
        """That of the originals and the tokenizer."""
        identity = self._source.identity
        return None if identity is None else {"reconstructed": identity, **_tokenizer(self._pipeline)}

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield all images in order."""
        return self.read(self.units(batch_size))

    def units(self, batch_size: int) -> list[range]:
        """Return the indices of the images of every batch."""
        return split(len(self), batch_size)

    def read(self, units: Iterable[range]) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the images of some of the ``units``."""
        return map(self.take, units)

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Return some images."""
        images = self._pipeline.decode(self._codes[list(indices)].long())
        return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _encode(images: UInt8[np.ndarray, "b s s 3"], pipeline: Pipeline) -> Int[Tensor, "b l"]:
    tokenizer = pipeline.tokenizer
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    codes = tokenizer.encode(to_float(pixels).to(tokenizer.device))
    return codes.flatten(1).cpu().to(torch.int32)


def _tokenizer(pipeline: Pipeline) -> dict[str, str]:
    """Return what codes and reconstructions depend on besides the images."""
    tokenizer = pipeline.tokenizer
    place = {"dtype": str(tokenizer.dtype), "device": tokenizer.device.type}
    return {"tokenizer": tokenizer.fingerprint(), **place}


def _are_codes(codes: np.ndarray, pipeline: Pipeline) -> bool:
    size = pipeline.tokenizer.config.codebook_size
    return codes.dtype == np.int32 and bool(((codes >= 0) & (codes < size)).all())
