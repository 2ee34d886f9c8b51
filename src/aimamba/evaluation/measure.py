"""From a stream of images to everything that the metrics need of it, kept on disk for sets that come again."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from aimamba import __version__
from aimamba.data.cache import store_array
from aimamba.errors import DataError
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.inception_score import InceptionScore
from aimamba.evaluation.npz import stored_statistics
from aimamba.evaluation.sources import Source
from aimamba.evaluation.statistics import Gaussian, Moments, check_finite
from aimamba.files import cache_folder, write_atomically

_ROWS = 1000  # of vectors that enter a covariance at once


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a network has found in a set of images.

    Attributes:
        network: Its name.
        vectors: (n, D) float32, in the order of the images.
        spatial: Mean and covariance of the spatial features, where the network gives them.
        inception_score: Where the network gives logits.
        stored: Mean and covariance that came with the images and stand for a larger set.
    """

    network: str
    vectors: Tensor
    spatial: Gaussian | None = None
    inception_score: float | None = None
    stored: Gaussian | None = None

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance of the vectors, or those that came with the images.

        Raises:
            DataError: There are fewer than two images.
        """
        if self.stored is not None:
            return self.stored
        moments = Moments(self.vectors.shape[1])
        for rows in self.vectors.split(_ROWS):
            moments.add(rows)
        return moments.gaussian()


def measure(source: Source, extractor: Extractor, *, progress: bool = False) -> Measured:
    """Look at every image once.

    Args:
        source: The images; never held all at once.
        extractor: The network.
        progress: Show a bar on stderr.

    Raises:
        DataError: There are fewer than two images, or features are no numbers.
    """
    check_enough(source)
    collector = Collector(extractor, len(source))
    bar = tqdm(total=len(source), desc=f"{extractor.name}: {source.name}", unit="image", disable=not progress)
    with bar:
        for images in source.batches(extractor.batch_size):
            collector.add(to_channels_first(images))
            bar.update(len(images))
    return collector.measured()


def check_enough(source: Source) -> None:
    """Refuse a set of fewer than two images.

    Raises:
        DataError: There are fewer.
    """
    if len(source) < 2:
        raise DataError(f"{source.name}: too few images to measure a set, got {len(source)}; give at least 2")


class Collector:
    """Gathers what a network finds, batch by batch."""

    def __init__(self, extractor: Extractor, count: int) -> None:
        """Make room for ``count`` images."""
        self._extractor = extractor
        self._vectors = torch.empty(count, extractor.width)
        self._place = 0
        self._spatial = Moments(extractor.spatial_width)
        self._waiting: list[Tensor] = []  # spatial features: a covariance likes many rows at once
        self._score: InceptionScore | None = None

    def add(self, images: UInt8[Tensor, "b 3 h w"]) -> None:
        """Look at more images.

        Raises:
            DataError: Features are no numbers.
        """
        found = self._extractor(images)
        vectors = found.vectors.float().cpu()
        check_finite(vectors)
        self._vectors[self._place : self._place + len(vectors)] = vectors
        self._place += len(vectors)
        if found.spatial is not None:
            self._waiting.append(found.spatial.float().cpu())
            if sum(map(len, self._waiting)) >= _ROWS:
                self._settle()
        if found.logits is not None:
            self._score = self._score or InceptionScore()
            self._score.add(found.logits)

    def measured(self) -> Measured:
        """Everything that was found."""
        self._settle()
        return Measured(
            network=self._extractor.name,
            vectors=self._vectors[: self._place],
            spatial=self._spatial.gaussian() if self._spatial.count else None,
            inception_score=None if self._score is None else self._score.value(),
        )

    def _settle(self) -> None:
        if self._waiting:
            self._spatial.add(torch.cat(self._waiting))
            self._waiting = []


def measure_once(source: Source, extractor: Extractor, *, progress: bool = False) -> Measured:
    """``measure``, kept in the cache with its provenance, and found there the next time.

    What is kept hangs on the images' identity, the network's settings and nothing else. A source without an identity
    is measured anew.
    """
    if source.identity is None:
        return measure(source, extractor, progress=progress)
    provenance = {"pictures": source.identity, "network": dict(extractor.settings)}
    text = json.dumps(provenance, sort_keys=True)
    folder = cache_folder() / "features" / hashlib.sha256(text.encode()).hexdigest()[:24]
    if (kept := _load(folder, extractor)) is not None:
        return kept
    found = measure(source, extractor, progress=progress)
    with suppress(OSError):  # a cache that cannot be written is no reason to lose the result
        _store(folder, found, {"aimamba": __version__, **provenance})
    return found


def measure_set(source: Source, extractor: Extractor, *, keep: bool, progress: bool = False) -> Measured:
    """Measure a set in the way that suits it.

    Args:
        source: The images. Statistics stored beside them stand in for theirs where Inception is asked.
        extractor: The network.
        keep: Keep the result in the cache.
        progress: Show a bar on stderr.

    Raises:
        DataError: There are too few images; or there are none but stored statistics of another network.
    """
    stored = stored_statistics(source)
    if stored is None or extractor.name != "inception":
        if stored is not None and not len(source):
            raise DataError(
                f"{source.name}: holds Inception's statistics and no images, so {extractor.name} has nothing to look "
                "at: use --features inception, or give images"
            )
        return (measure_once if keep else measure)(source, extractor, progress=progress)
    if len(source):
        found = (measure_once if keep else measure)(source, extractor, progress=progress)
    else:
        found = Measured(network=extractor.name, vectors=torch.empty(0, extractor.width))
    return replace(found, stored=stored.pooled, spatial=stored.spatial or found.spatial)


def to_channels_first(images: UInt8[np.ndarray, "b s s 3"]) -> UInt8[Tensor, "b 3 s s"]:
    """Bytes as files hold them, to bytes as networks take them."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _parts(folder: Path) -> Iterator[Path]:
    return (folder / name for name in ("vectors.npy", "spatial_mean.npy", "spatial_covariance.npy", "provenance.json"))


def _store(folder: Path, found: Measured, provenance: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vectors, mean, covariance, about = _parts(folder)
    store_array(vectors, found.vectors.numpy())
    if found.spatial is not None:
        store_array(mean, found.spatial.mean.numpy())
        store_array(covariance, found.spatial.covariance.numpy())
    content = json.dumps({**provenance, "inception_score": found.inception_score}, indent=2) + "\n"
    write_atomically(about, lambda path: path.write_text(content, encoding="utf-8"))  # last: now the folder is whole


def _load(folder: Path, extractor: Extractor) -> Measured | None:
    vectors, mean, covariance, about = _parts(folder)
    try:
        score = json.loads(about.read_text(encoding="utf-8"))["inception_score"]
        spatial = None
        if extractor.spatial_width:
            spatial = Gaussian(torch.from_numpy(np.load(mean)), torch.from_numpy(np.load(covariance)))
        found = torch.from_numpy(np.load(vectors))
    except (OSError, ValueError, KeyError, EOFError):  # absent or damaged: measured anew
        return None
    return Measured(network=extractor.name, vectors=found, spatial=spatial, inception_score=score)
