"""What an evaluation looks at: images opened by name, or samples that a model generates when they are needed.

Images are uint8 arrays (n, s, s, 3). They are read in batches and never held in memory all at once.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64, UInt8
from torch import Tensor

from aimamba.config import check, to_mapping
from aimamba.data.npz import NpzImages, write_npz
from aimamba.data.sets import open_source
from aimamba.evaluation.kept_codes import KeptCodes
from aimamba.generation import SamplingConfig
from aimamba.generation.record import ModelRecord
from aimamba.pipeline import Pipeline

_SAVED_AT_ONCE = 64  # images

__all__ = ["ModelSource", "Source", "kept_settings", "make_labels", "open_source", "save_source"]


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
    """Samples of a model, generated when they are read: image i has label i and seed ``config.seed + i``.

    Codes are generated once; from then on images are decoded from them.
    """

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        labels: Int64[np.ndarray, " n"],
        config: SamplingConfig,
        batch_size: int,
        *,
        keep: Callable[[SamplingConfig], KeptCodes | None] | None = None,
    ):
        """Describe the samples; nothing is generated yet.

        Args:
            name: Of the model.
            pipeline: The model.
            labels: Class of every sample.
            config: How tokens are sampled.
            batch_size: How many images to generate at once.
            keep: Returns where to keep the codes of samples with some settings, so that an interrupted command goes on
                with them.

        Raises:
            ConfigError: Codes of other settings are kept there.
        """
        self.name = name
        self.size = pipeline.image_size
        self.labels = labels
        self.class_names = pipeline.class_names
        self.identity = None
        self.pipeline = pipeline
        self.config = config
        self.kept = None if keep is None else keep(config)
        self._keep = keep
        self._batch_size = batch_size
        self._saved: NpzImages | None = None
        shape = len(labels), pipeline.grid**2
        if self.kept is None:
            self._codes = np.full(shape, -1, np.int32)
        else:
            self._codes = self.kept.load(*shape, pipeline.generator.config.vocab_size)

    def guided(self, scale: float) -> "ModelSource":
        """Return samples of the same labels and seeds at another guidance scale."""
        config = replace(self.config, cfg_scale=scale)
        name = f"{self.name} at {scale:g}"
        return ModelSource(name, self.pipeline, self.labels, config, self._batch_size, keep=self._keep)

    @property
    def known(self) -> int:
        """Number of samples whose codes have been generated."""
        return int((self._codes[:, 0] >= 0).sum())

    @property
    def codes(self) -> Int32[Tensor, "n l"]:
        """The codes of all samples; those that were not generated yet are generated now."""
        for start in range(0, len(self), self._batch_size):
            self._generate(range(start, min(start + self._batch_size, len(self))))
        return torch.from_numpy(self._codes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def save(self, path: Path, advance: Callable[[int], object] = lambda _: None) -> None:
        """Write all images into an ``.npz`` file; they are read from it from then on.

        Args:
            path: The file; it is either whole or absent.
            advance: Called with the number of images written since the last call.
        """

        def watched() -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
            for images in self.batches(self._batch_size):
                yield images
                advance(len(images))

        write_npz(path, watched(), self.labels, self.size)
        self._saved = NpzImages(path)

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield all images in order, at most ``batch_size`` at once, however many are generated at once."""
        if self._saved is not None:
            yield from self._saved.batches(batch_size)
            return
        starts = range(0, len(self), self._batch_size)
        parts = [range(start, min(start + self._batch_size, len(self))) for start in starts]
        new = [part for part in parts if (self._codes[part.start : part.stop, 0] < 0).all()]
        jobs = ([(int(self.labels[index]), self.config.seed + index) for index in part] for part in new)
        made = self.pipeline.batches(jobs, self.config)
        for part in parts:
            if part in new:
                found = next(made)
                self._add(part, found.codes)
                images = found.images.numpy()
            else:
                images = self._decode(part)
            yield from (images[first : first + batch_size] for first in range(0, len(images), batch_size))

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Return some images; those that were not generated yet are generated now."""
        if self._saved is not None:
            return self._saved.take(indices)
        chosen = [indices[start : start + self._batch_size] for start in range(0, len(indices), self._batch_size)]
        return np.concatenate([self._decode(some) for some in chosen])

    def _decode(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        self._generate(indices)
        device = self.pipeline.tokenizer.codebook.device
        codes = torch.from_numpy(self._codes[list(indices)]).long().to(device)
        return self.pipeline.decode(codes).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _generate(self, indices: Sequence[int]) -> None:
        """Generate the codes of some images, as far as they are not known."""
        missing = [index for index in indices if self._codes[index, 0] < 0]
        if not missing:
            return
        chosen = torch.from_numpy(self.labels[missing])
        seeds = [self.config.seed + index for index in missing]
        [codes] = deque(self.pipeline.generate(chosen, self.config, seeds=seeds), maxlen=1)  # the last
        self._add(missing, codes.cpu())

    def _add(self, indices: Sequence[int], codes: Int[Tensor, "b l"]) -> None:
        """Remember codes that were generated, and keep them where an interrupted command finds them."""
        self._codes[list(indices)] = codes.numpy()
        if self.kept is not None and list(indices) == list(range(indices[0], indices[-1] + 1)):
            self.kept.add(indices[0], self._codes[list(indices)])


def save_source(source: Source, path: Path, advance: Callable[[int], object] = lambda _: None) -> None:
    """Write all images of a set into an ``.npz`` file; a ``ModelSource`` reads them from it from then on.

    Args:
        source: The images.
        path: The file; it is either whole or absent.
        advance: Called with the number of images written since the last call.
    """
    if isinstance(source, ModelSource):
        source.save(path, advance)
        return

    def watched() -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        for images in source.batches(_SAVED_AT_ONCE):
            yield images
            advance(len(images))

    write_npz(path, watched(), source.labels, source.size, count=len(source))


def kept_settings(model: ModelRecord, labelling: str, config: SamplingConfig) -> dict[str, Any]:
    """Return everything that the codes of samples depend on, for ``KeptCodes``: not names, places and batch sizes."""
    about = {key: value for key, value in to_mapping(model).items() if key not in ("model", "tokenizer")}
    return {**about, "labels": labelling, "sampling": to_mapping(config)}


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
