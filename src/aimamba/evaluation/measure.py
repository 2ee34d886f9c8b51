"""Features and statistics of a set of images, computed batch by batch and cached on disk for references."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from aimamba.errors import DataError
from aimamba.evaluation.features import Extractor, Features
from aimamba.evaluation.inception_score import InceptionScore
from aimamba.evaluation.npz import stored_statistics
from aimamba.evaluation.sources import ModelSource, Source
from aimamba.evaluation.statistics import Gaussian, Moments, check_finite
from aimamba.evaluation.stored import StoredArrays
from aimamba.sharing import ALONE, Sharing

_LARGEST_SIDE = 2048  # pixels
_ROWS = 1000  # vectors added to a covariance at once
_PARTS = len(Features._fields)


@dataclass(frozen=True, kw_only=True)
class SetFeatures:
    """Features and statistics of a set of images.

    Attributes:
        network: Name of the network that computed them.
        vectors: (n, D) float32, in the order of the images.
        spatial: Mean and covariance of the spatial features, if the network has them.
        inception_score: Inception score, if the network has logits.
        stored: Mean and covariance from the file of the images, which replace those of ``vectors``.
    """

    network: str
    vectors: Tensor
    spatial: Gaussian | None = None
    inception_score: float | None = None
    stored: Gaussian | None = None

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance: the stored ones, or those of the vectors.

        Raises:
            DataError: There are fewer than two images.
        """
        if self.stored is not None:
            return self.stored
        moments = Moments(self.vectors.shape[1])
        for rows in self.vectors.split(_ROWS):
            moments.add(rows)
        return moments.gaussian()


def measure(source: Source, extractor: Extractor, *, progress: bool = False, sharing: Sharing = ALONE) -> SetFeatures:
    """Compute the features of every image.

    Args:
        source: The images, read batch by batch.
        extractor: Computes the features.
        progress: Show a bar on stderr.
        sharing: The processes that share the work. The first one gets the features, the others none.

    Raises:
        DataError: There are fewer than two images, or features contain NaN or infinity.
    """
    check_enough(source)
    if isinstance(source, ModelSource):
        source.agree(sharing)
    collector = FeatureCollector(extractor, len(source))
    batches = source.units(extractor.batch_size)
    units = sharing.units(len(batches))

    def look(images: UInt8[np.ndarray, "b s s 3"]) -> list[Tensor]:
        """Return the features of a unit, batch by batch."""
        starts = range(0, len(images), extractor.batch_size)
        parts = (to_channels_first(images[start : start + extractor.batch_size]) for start in starts)
        return [tensor for part in parts for tensor in _on_host(extractor(part))]

    found = map(look, source.read(batches[number] for number in units))
    bar = tqdm(total=len(source), desc=f"{extractor.name}: {source.name}", unit="image", disable=not progress)
    with bar:
        for tensors in units.in_order(found):
            for start in range(0, len(tensors), _PARTS):
                collector.take(*tensors[start : start + _PARTS])
                bar.update(len(tensors[start]))
    if isinstance(source, ModelSource):
        source.agree(sharing)
    return sharing.in_first(collector.result, _none(extractor))


def check_enough(source: Source) -> None:
    """Check that a set has at least two images, of a size that a network can take.

    Raises:
        DataError: It has fewer, or images so large that a batch would take many gigabytes.
    """
    if source.size > _LARGEST_SIDE:
        raise DataError(
            f"{source.name}: images of {source.size} pixels a side are too large to measure, at most {_LARGEST_SIDE}; "
            "scale them down (--size does it for folders)"
        )
    if len(source) < 2:
        raise DataError(f"{source.name}: too few images to measure a set, got {len(source)}; give at least 2")


class FeatureCollector:
    """Computes and collects features, batch by batch."""

    def __init__(self, extractor: Extractor, count: int) -> None:
        """Allocate memory for ``count`` images."""
        self._extractor = extractor
        self._vectors = torch.empty(count, extractor.width, dtype=torch.float32)
        self._count = 0
        self._spatial = Moments(extractor.spatial_width)
        self._waiting: list[Tensor] = []  # spatial features, added to the covariance in large blocks
        self._score: InceptionScore | None = None

    def add(self, images: UInt8[Tensor, "b 3 h w"]) -> None:
        """Add a batch of images.

        Raises:
            DataError: Features contain NaN or infinity.
        """
        self.take(*_on_host(self._extractor(images)))

    def take(self, vectors: Tensor, spatial: Tensor, logits: Tensor) -> None:
        """Add features that are on the host; those that the network does not have are empty.

        Raises:
            DataError: Features contain NaN or infinity.
        """
        check_finite(vectors)
        self._vectors[self._count : self._count + len(vectors)] = vectors
        self._count += len(vectors)
        if len(spatial):
            self._waiting.append(spatial)
            if sum(map(len, self._waiting)) >= _ROWS:
                self._add_waiting()
        if len(logits):
            self._score = self._score or InceptionScore()
            self._score.add(logits)

    def result(self) -> SetFeatures:
        """Return the features of all images so far."""
        self._add_waiting()
        return SetFeatures(
            network=self._extractor.name,
            vectors=self._vectors[: self._count],
            spatial=self._spatial.gaussian() if self._spatial.count else None,
            inception_score=None if self._score is None else self._score.value(),
        )

    def _add_waiting(self) -> None:
        if self._waiting:
            self._spatial.add(torch.cat(self._waiting))
            self._waiting = []


def _none(extractor: Extractor) -> SetFeatures:
    return SetFeatures(network=extractor.name, vectors=torch.empty(0, extractor.width, dtype=torch.float32))


def _on_host(found: Features) -> list[Tensor]:
    """Return vectors, spatial features and logits on the host; those that the network does not have are empty."""
    vectors, spatial, logits = found
    rest = (torch.empty(0, dtype=torch.float32) if part is None else part for part in (spatial, logits))
    return [part.detach().float().cpu() for part in (vectors, *rest)]


def measure_cached(
    source: Source, extractor: Extractor, *, progress: bool = False, sharing: Sharing = ALONE
) -> SetFeatures:
    """Return the features of a set from the cache, or compute and cache them.

    They are kept with the identity of the images and the settings of the network, nothing else. What is damaged is
    computed again. Features of a source without an identity are computed every time.
    """
    if source.identity is None:
        return measure(source, extractor, progress=progress, sharing=sharing)
    stored = StoredArrays("features", {"pictures": source.identity, "network": dict(extractor.settings)})
    kept = _load(stored, len(source), extractor) if sharing.is_first else None
    if sharing.once(lambda: kept is not None):
        return kept or _none(extractor)
    found = measure(source, extractor, progress=progress, sharing=sharing)
    if not sharing.is_first:
        return found
    arrays = {"vectors": found.vectors.numpy()}
    if found.spatial is not None:
        arrays |= {"spatial_mean": found.spatial.mean.numpy(), "spatial_covariance": found.spatial.covariance.numpy()}
    stored.store(arrays, inception_score=found.inception_score)
    return found


def measure_set(
    source: Source, extractor: Extractor, *, keep: bool, progress: bool = False, sharing: Sharing = ALONE
) -> SetFeatures:
    """Return the features of a set, with the statistics stored in its file if there are any.

    Args:
        source: The images. For Inception, statistics stored in their file are used instead of those of the images.
        extractor: Computes the features.
        keep: Use the cache.
        progress: Show a bar on stderr.
        sharing: The processes that share the work; see ``measure``.

    Raises:
        DataError: There are too few images, or only stored statistics of another network.
    """
    stored = stored_statistics(source)
    if stored is None or extractor.name != "inception":
        if stored is not None and not len(source):
            raise DataError(
                f"{source.name}: holds Inception's statistics and no images, which {extractor.name} cannot "
                "use: use --features inception, or give images"
            )
        return (measure_cached if keep else measure)(source, extractor, progress=progress, sharing=sharing)
    if len(source):
        found = (measure_cached if keep else measure)(source, extractor, progress=progress, sharing=sharing)
    else:
        found = _none(extractor)
    return replace(found, stored=stored.pooled, spatial=stored.spatial or found.spatial)


def to_channels_first(images: UInt8[np.ndarray, "b s s 3"]) -> UInt8[Tensor, "b 3 s s"]:
    """Return channels-last images as channels-first."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _load(stored: StoredArrays, count: int, extractor: Extractor) -> SetFeatures | None:
    width = extractor.spatial_width
    shapes: dict[str, tuple[int, ...]] = {"vectors": (count, extractor.width)}
    if width:
        shapes |= {"spatial_mean": (width,), "spatial_covariance": (width, width)}
    found = stored.load(shapes)
    if found is None or found[0]["vectors"].dtype != np.float32:
        return None
    arrays = {name: torch.from_numpy(array) for name, array in found[0].items()}
    score = found[1].get("inception_score")
    if not (score is None or isinstance(score, float)):
        return None
    spatial = Gaussian(arrays["spatial_mean"], arrays["spatial_covariance"]) if width else None
    return SetFeatures(network=extractor.name, vectors=arrays["vectors"], spatial=spatial, inception_score=score)
