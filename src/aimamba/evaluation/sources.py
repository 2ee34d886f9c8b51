"""What an evaluation looks at: images opened by name, or samples that a model generates when they are needed.

Images are uint8 arrays (n, s, s, 3). They are read in batches and never held in memory all at once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from aimamba.config import check
from aimamba.data.sets import open_source
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline

__all__ = ["ModelSource", "Source", "make_labels", "open_source"]


@runtime_checkable
class Source(Protocol):
    """Square images in a fixed order; ``aimamba.data.images.Images`` and ``ModelSource`` are of this kind.

    Attributes:
        name: The name that the user gave it.
        size: Side of the images in pixels.
        class_names: Names of the classes; empty where the images have no classes or the classes no names.
    """

    name: str
    size: int
    class_names: tuple[str, ...]

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """Class index of every image, or None."""

    def __len__(self) -> int:
        """Return the number of images."""

    @property
    def identity(self) -> dict[str, Any] | None:
        """Everything that the images depend on; features are kept under it. None: they are measured every time."""

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield all images in order."""

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Return some images."""
        ...


class ModelSource:
    """Samples of a model, generated when they are read: image i has label i and seed ``config.seed + i``."""

    def __init__(
        self, name: str, pipeline: Pipeline, labels: Int64[np.ndarray, " n"], config: SamplingConfig, batch_size: int
    ):
        """Describe the samples; nothing is generated yet.

        Args:
            name: Of the model.
            pipeline: The model.
            labels: Class of every sample.
            config: How tokens are sampled.
            batch_size: How many images to generate at once.
        """
        self.name = name
        self.size = pipeline.image_size
        self.labels = labels
        self.class_names = pipeline.class_names
        self.identity = None
        self.pipeline = pipeline
        self._codes = np.full((len(labels), pipeline.grid**2), -1, np.int32)
        self.config = config
        self._batch_size = batch_size

    def guided(self, scale: float) -> "ModelSource":
        """Return samples of the same labels and seeds at another guidance scale."""
        config = replace(self.config, cfg_scale=scale)
        return ModelSource(f"{self.name} at {scale:g}", self.pipeline, self.labels, config, self._batch_size)

    @property
    def codes(self) -> Int32[Tensor, "n l"]:
        """The codes of all samples; those that were not generated yet are generated now."""
        missing = np.flatnonzero(self._codes[:, 0] < 0)
        for start in range(0, len(missing), self._batch_size):
            self._generate(missing[start : start + self._batch_size].tolist())
        return torch.from_numpy(self._codes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield all images in order, at most ``batch_size`` at once, however many are generated at once."""
        for start in range(0, len(self), self._batch_size):
            images = self.take(range(start, min(start + self._batch_size, len(self))))
            yield from (images[first : first + batch_size] for first in range(0, len(images), batch_size))

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Generate some images."""
        starts = range(0, len(indices), self._batch_size)
        return np.concatenate([self._generate(indices[start : start + self._batch_size]) for start in starts])

    def _generate(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        chosen = torch.from_numpy(self.labels[list(indices)])
        seeds = [self.config.seed + index for index in indices]
        [codes] = deque(self.pipeline.generate(chosen, self.config, seeds=seeds), maxlen=1)  # the last
        self._codes[list(indices)] = codes.cpu().numpy()
        return self.pipeline.decode(codes).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def make_labels(labelling: str, n: int, classes: int, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """Return the classes of ``n`` samples.

    Args:
        labelling: ``balanced`` takes all classes in turn; ``random`` chooses each at random, as for published FIDs.
        n: Number of samples.
        classes: Number of classes.
        seed: Of the random choice.

    Raises:
        ConfigError: There is no such labelling, or n is below 1.
    """
    check(n >= 1, f"-n must be at least 1, got {n}")
    check(labelling in ("balanced", "random"), f"--labels must be balanced or random, got {labelling!r}")
    if labelling == "balanced":
        return np.arange(n, dtype=np.int64) % classes
    return np.random.default_rng(seed).integers(classes, size=n)
