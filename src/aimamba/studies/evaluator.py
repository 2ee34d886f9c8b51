"""Evaluation of a model of a study by its samples."""

import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from aimamba.config import to_mapping
from aimamba.errors import DataError
from aimamba.evaluation.codes import Reconstructions, encode_source
from aimamba.evaluation.compare import all_metrics, compare
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.measure import measure_set
from aimamba.evaluation.sources import ModelSource, Source, make_labels
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline


@runtime_checkable
class Evaluator(Protocol):
    """Samples a pipeline and returns metrics by name."""

    def __call__(self, pipeline: Pipeline, sampling: SamplingConfig) -> dict[str, Any]:
        """Sample and measure."""
        ...

    def without_samples(self, pipeline: Pipeline) -> dict[str, Any]:
        """Return what is measured of the model itself."""
        ...


class SampleEvaluator:
    """Compares samples of a model, balanced over its classes, with real images."""

    def __init__(self, reference: Source, extractor: Extractor, *, size: int, samples: int, batch_size: int) -> None:
        """Set what to compare with, and how many samples to generate.

        Args:
            reference: Real images.
            extractor: Computes the features of all images.
            size: Side in pixels of the images that the models generate.
            samples: Samples of each model.
            batch_size: Images that a model generates at once.

        Raises:
            DataError: The real images have another size.
        """
        if reference.size != size:
            raise DataError(
                f"judging.reference {reference.name} has images of {reference.size} pixels, the models generate "
                f"{size}; name a set of {size} pixels"
            )
        self._reference = reference
        self._extractor = extractor
        self._samples = samples
        self._batch_size = batch_size

    def __call__(self, pipeline: Pipeline, sampling: SamplingConfig) -> dict[str, Any]:
        """Return the metrics of ``aimamba evaluate`` and the name of the ``network`` that they come from."""
        found = compare(self._source(pipeline, sampling), self._reference, self._extractor, progress=True)
        return {"network": found.network, **found.metrics.to_dict()}

    def without_samples(self, pipeline: Pipeline) -> dict[str, Any]:
        """Return nothing: the held-out bits, which training measures, are enough."""
        return {}

    def _source(self, pipeline: Pipeline, sampling: SamplingConfig) -> ModelSource:
        labels = make_labels("balanced", self._samples, pipeline.generator.config.num_classes)
        return ModelSource("samples", pipeline, labels, sampling, self._batch_size)


class QualityBesideReconstructions(SampleEvaluator):
    """Compares samples with real images and with their reconstructions.

    All models have the tokenizer of the first one. No sample is better than what it can decode, so the distance to
    real images says little about the generator.
    """

    def __call__(self, pipeline: Pipeline, sampling: SamplingConfig) -> dict[str, Any]:
        """Return the metrics of ``SampleEvaluator``, and the same against ``reconstructions``."""
        source, extractor = self._source(pipeline, sampling), self._extractor
        generated = measure_set(source, extractor, keep=False, progress=True)
        codes = encode_source(self._reference, pipeline, progress=True)[:, 0]
        decoded = Reconstructions(self._reference, codes, pipeline)

        def against(reference: Source) -> dict[str, Any]:
            real = measure_set(reference, extractor, keep=True, progress=True)
            return all_metrics(source, generated, reference, real, device=torch.device("cpu")).to_dict()

        found = against(self._reference)
        return {"network": extractor.name, **found, "reconstructions": against(decoded)}


def evaluate(pipeline: Pipeline, samplings: Sequence[SamplingConfig], evaluator: Evaluator) -> dict[str, Any]:
    """Return what is measured of a model, and ``samples`` with every setting, see ``evaluate_sampling``."""
    started = time.perf_counter()
    found = evaluator.without_samples(pipeline)
    seconds = time.perf_counter() - started
    samples = [evaluate_sampling(pipeline, sampling, evaluator) for sampling in samplings]
    return {**found, **({"seconds": seconds} if found else {}), "samples": samples}


def evaluate_sampling(pipeline: Pipeline, sampling: SamplingConfig, evaluator: Evaluator) -> dict[str, Any]:
    """Return sampling settings with their metrics, and the seconds that sampling and measuring took."""
    started = time.perf_counter()
    numbers = evaluator(pipeline, sampling)
    return {"sampling": to_mapping(sampling), "numbers": numbers, "seconds": time.perf_counter() - started}
