"""Judging a model by its images."""

import time
from typing import Any, Protocol, runtime_checkable

from aimamba.config import to_mapping
from aimamba.errors import DataError
from aimamba.evaluation.compare import compare
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.sources import ModelSource, Source, make_labels
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline


@runtime_checkable
class Measure(Protocol):
    """Draws images of a model and gives numbers by name."""

    def __call__(self, pipeline: Pipeline, sampling: SamplingConfig) -> dict[str, Any]:
        """Draw and measure."""
        ...


class SampleEvaluator:
    """Compares images of a model, its classes in turn, with real ones."""

    def __init__(self, reference: Source, extractor: Extractor, *, size: int, samples: int, batch_size: int) -> None:
        """Say with what to compare, and what will be drawn.

        Args:
            reference: Real images.
            extractor: Looks at all images.
            size: Side of the images that will be drawn.
            samples: How many of each model.
            batch_size: Images drawn at once.

        Raises:
            DataError: The real images are of another size.
        """
        if reference.size != size:
            raise DataError(
                f"judging.reference {reference.name} has images of {reference.size} pixels, the models draw {size}; "
                f"name a set of {size} pixels"
            )
        self._reference = reference
        self._extractor = extractor
        self._samples = samples
        self._batch_size = batch_size

    def __call__(self, pipeline: Pipeline, sampling: SamplingConfig) -> dict[str, Any]:
        """Give the numbers of ``aimamba evaluate`` and the ``network`` they come from."""
        labels = make_labels("balanced", self._samples, pipeline.generator.config.num_classes)
        source = ModelSource("samples", pipeline, labels, sampling, self._batch_size)
        found = compare(source, self._reference, self._extractor, progress=True)
        return {"network": found.network, **found.numbers}


def judged(pipeline: Pipeline, sampling: SamplingConfig, measure: Measure) -> dict[str, Any]:
    """The settings of a draw with its numbers, and the seconds that drawing and measuring took."""
    started = time.perf_counter()
    numbers = measure(pipeline, sampling)
    return {"sampling": to_mapping(sampling), "numbers": numbers, "seconds": time.perf_counter() - started}
