"""What an evaluation looks at: images opened by name, or samples that a model generates when they are needed.

Images are uint8 arrays (n, s, s, 3). They are read in batches and never held in memory all at once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64, UInt8
from torch import Tensor

from aimamba.cluster.workers import Cluster
from aimamba.config import check, to_mapping
from aimamba.data.images import split
from aimamba.data.npz import NpzImages, write_npz
from aimamba.data.sets import open_source
from aimamba.evaluation.kept_codes import KeptCodes
from aimamba.generation import SamplingConfig
from aimamba.generation.engines import make_engine, resolve_engine
from aimamba.generation.record import ModelRecord
from aimamba.models import AiM, VQModel
from aimamba.pipeline import Pipeline, Prompt
from aimamba.sharing import ALONE, Sharing

MOST_SAMPLES = 10_000_000
"""Samples of a model in one evaluation, or in one folder."""

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

    def units(self, batch_size: int) -> list[range]:
        """Return the indices of the images that are read at once; they do not depend on the number of processes."""

    def read(self, units: Iterable[range]) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the images of some of the ``units``, in rising order, taking each when it is needed."""

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Return some images."""
        ...


class ModelSource:
    """Samples of a model, generated when they are read: image i has label i and seed ``config.seed + i``.

    Codes are generated once; from then on images are decoded from them. Where several processes share the work, each
    knows the codes that it has generated, and after ``agree`` those of all.
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
        self._codes = np.full((len(labels), pipeline.grid**2), -1, np.int32)
        if self.kept is not None:
            self._codes = self._load(self.kept)

    def guided(self, scale: float) -> "ModelSource":
        """Return samples of the same labels and seeds at another guidance scale."""
        config = replace(self.config, cfg_scale=scale)
        name = f"{self.name} at {scale:g}"
        return type(self)(name, self.pipeline, self._wanted, config, self._batch_size, keep=self._keep)

    @property
    def _wanted(self) -> Any:
        """What ``__init__`` takes as the classes of the samples."""
        return self.labels

    def _given(self, index: int) -> int | Prompt:
        """Return the class or the prompt of a sample."""
        return int(self.labels[index])

    @property
    def known(self) -> int:
        """Number of samples whose codes have been generated, as far as this process or the kept codes know."""
        codes = self._codes if self.kept is None else np.maximum(self._codes, self._load(self.kept))
        return int((codes[:, 0] >= 0).sum())

    @property
    def codes(self) -> Int32[Tensor, "n l"]:
        """The codes of all samples; those that were not generated yet are generated now."""
        for unit in self.units():
            self._generate(unit)
        return torch.from_numpy(self._codes)

    def agree(self, sharing: Sharing) -> None:
        """Learn the codes that other processes have generated or kept; each of them calls this."""
        self._codes = sharing.union(self._codes)

    def _load(self, kept: KeptCodes) -> Int32[np.ndarray, "n l"]:
        return kept.load(*self._codes.shape, self.pipeline.generator.config.vocab_size)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def save(self, path: Path, advance: Callable[[int], object] = lambda _: None, *, sharing: Sharing = ALONE) -> None:
        """Write all images into an ``.npz`` file; they are read from it from then on.

        Args:
            path: The file; it is either whole or absent. The first process writes it.
            advance: Called with the number of images written since the last call.
            sharing: The processes that share the work.
        """
        stream = shared_images(self, self._batch_size, sharing)

        def watched() -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
            for images in stream:
                yield images
                advance(len(images))

        if sharing.is_first:
            write_npz(path, watched(), self.labels, self.size)
        else:
            deque(stream, maxlen=0)
        self.agree(sharing)
        if sharing.once(lambda: True) and path.is_file():  # other machines may not see it
            self._saved = NpzImages(path)

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield all images in order, at most ``batch_size`` at once, however many are generated at once."""
        for images in self.read(self.units()):
            yield from (images[first : first + batch_size] for first in range(0, len(images), batch_size))

    def units(self, _batch_size: int | None = None) -> list[range]:
        """Return the indices of the samples that are generated at once, whatever number is measured at once."""
        return split(len(self), self._batch_size)

    def read(self, units: Iterable[range]) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the images of some of the ``units``; those that were not generated yet are generated now."""
        if self._saved is not None:
            yield from self._saved.read(units)
            return
        for new, group in groupby(units, key=lambda unit: bool((self._codes[unit.start : unit.stop, 0] < 0).all())):
            make = self._generated if new else partial(map, self._decode)
            yield from make(group)

    def _generated(self, units: Iterable[range]) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Generate and yield the images of some units, none of which has been generated."""
        begun: deque[range] = deque()

        def jobs() -> Iterator[list[tuple[int | Prompt, int]]]:
            for unit in units:
                begun.append(unit)
                yield [(self._given(index), self.config.seed + index) for index in unit]

        for found in self.pipeline.batches(jobs(), self.config):
            self._add(begun.popleft(), found.codes)
            yield found.images.numpy()

    def read_over(self, cluster: Cluster) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the images of all units in order, generated and decoded by the workers of a cluster."""
        units = self.units()
        jobs = [(self.labels[unit], self.config.seed + unit.start, self._codes[unit]) for unit in units]
        sampler = _Sampler(self.pipeline.tokenizer, self.pipeline.generator, self.pipeline.engine, self.config)
        results = cluster.results(jobs, sampler, in_order=True)
        for unit, (_, (codes, images)) in zip(units, results, strict=True):
            if (self._codes[unit, 0] < 0).any():
                self._add(unit, torch.from_numpy(codes))
            yield images

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Return some images; those that were not generated yet are generated now."""
        if self._saved is not None:
            return self._saved.take(indices)
        chosen = [indices[start : start + self._batch_size] for start in range(0, len(indices), self._batch_size)]
        return np.concatenate([self._decode(some) for some in chosen])

    def _decode(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        self._generate(indices)
        device = self.pipeline.tokenizer.device
        codes = torch.from_numpy(self._codes[list(indices)]).long().to(device)
        return self.pipeline.decode(codes).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _generate(self, indices: Sequence[int]) -> None:
        """Generate the codes of some images, as far as they are not known."""
        missing = [index for index in indices if self._codes[index, 0] < 0]
        if not missing:
            return
        chosen = self.pipeline.labels([self._given(index) for index in missing])
        seeds = [self.config.seed + index for index in missing]
        [codes] = deque(self.pipeline.generate(chosen, self.config, seeds=seeds), maxlen=1)  # the last
        self._add(missing, codes.cpu())

    def _add(self, indices: Sequence[int], codes: Int[Tensor, "b l"]) -> None:
        """Remember codes that were generated, and keep them where an interrupted command finds them."""
        self._codes[list(indices)] = codes.numpy()
        if self.kept is not None and list(indices) == list(range(indices[0], indices[-1] + 1)):
            self.kept.add(indices[0], self._codes[list(indices)])


def engine_of_workers(pipeline: Pipeline, cluster: Cluster) -> str:
    """Return the name of the engine that generates samples in the workers of a cluster.

    Raises:
        ConfigError: They have no such engine.
    """
    if cluster.device == "cpu":
        pipeline.prepare()
        return resolve_engine(pipeline.generator, pipeline.engine)
    return cluster.call(_engine_on, pipeline.generator, torch.device(cluster.device), pipeline.engine)


def _engine_on(generator: AiM, device: torch.device, name: str) -> str:
    generator = generator.to(device)
    make_engine(generator, name)
    return resolve_engine(generator, name)


class _Sampler:
    """Generates and decodes batches of samples in a worker of a cluster."""

    def __init__(self, tokenizer: VQModel, generator: AiM, engine: str, config: SamplingConfig) -> None:
        self._pipeline = Pipeline(tokenizer, generator, engine=engine, foreign_tokenizer=True)
        self._config = config

    def to(self, device: torch.device) -> "_Sampler":
        """See ``Work.to``."""
        pipeline = self._pipeline
        tokenizer, generator = pipeline.tokenizer.to(device), pipeline.generator.to(device)
        return _Sampler(tokenizer, generator, pipeline.engine, self._config)

    def __call__(self, unit: tuple[np.ndarray, int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return codes and images for labels, the first seed, and codes, which are -1 where they are not known."""
        labels, seed, codes = unit
        source = ModelSource("", self._pipeline, labels, replace(self._config, seed=seed), len(labels))
        source._codes[:] = codes
        [images] = source.read(source.units())
        return source._codes, images


def shared_images(source: Source, batch_size: int, sharing: Sharing = ALONE) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
    """Yield all images in order in the first process, made by all; in the others yield nothing.

    Args:
        source: The images.
        batch_size: Images read at once, unless the source itself has units.
        sharing: The processes that share the work.
    """
    if isinstance(source, ModelSource):
        source.agree(sharing)
        if sharing.cluster is not None:
            yield from source.read_over(sharing.cluster)
            return
    all_units = source.units(batch_size)
    units = sharing.units(len(all_units))
    made = ([torch.from_numpy(images)] for images in source.read(all_units[number] for number in units))
    for [images] in units.in_order(made):
        yield images.numpy()


def save_source(
    source: Source, path: Path, advance: Callable[[int], object] = lambda _: None, *, sharing: Sharing = ALONE
) -> None:
    """Write all images of a set into an ``.npz`` file; a ``ModelSource`` reads them from it from then on.

    Args:
        source: The images.
        path: The file; it is either whole or absent. The first process writes it.
        advance: Called with the number of images written since the last call.
        sharing: The processes; they share the work of sampling a model.
    """
    if isinstance(source, ModelSource):
        source.save(path, advance, sharing=sharing)
        return

    def watched() -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        for images in source.batches(_SAVED_AT_ONCE):
            yield images
            advance(len(images))

    sharing.in_first(lambda: write_npz(path, watched(), source.labels, source.size, count=len(source)), None)


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
        ConfigError: There is no such labelling, or n is below 1 or above ``MOST_SAMPLES``.
    """
    check(1 <= n <= MOST_SAMPLES, f"-n must be from 1 to {MOST_SAMPLES:,}, got {n}")
    check(labelling in ("balanced", "random"), f"--labels must be balanced or random, got {labelling!r}")
    if labelling == "balanced":
        return np.arange(n, dtype=np.int64) % classes
    return np.random.default_rng(seed).integers(classes, size=n)
