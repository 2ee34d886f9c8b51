"""Evaluation of a model of a study by captions: bits with and without them, and what is read on samples."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from jaxtyping import Int
from torch import Tensor

from aimamba.data.captioned import CaptionedAvatars
from aimamba.errors import ConfigError, DataError
from aimamba.evaluation.caption_bits import CaptionBits
from aimamba.evaluation.captioned_set import Caption, CaptionedImages, split_names
from aimamba.evaluation.codes import encode_source
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.prompted import PromptedSource
from aimamba.evaluation.sources import open_source
from aimamba.evaluation.text import Judge, attribute_bounds, bits_of_set, judge_samples, make_judge
from aimamba.evaluation.text_metrics import AttributeBounds
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline, Prompt


class CaptionEvaluator:
    """Measures what captions are worth to a model: on all sets that a set of captioned avatars holds out.

    A model that takes captions gets them alone. One that takes classes gets the style of the caption's avatar, and is
    asked for all that the caption mentions all the same.
    """

    def __init__(self, reference: str, extractor: Extractor, *, size: int, samples: int, batch_size: int) -> None:
        """Open the sets.

        Args:
            reference: Name of captioned avatars; without a split all that they hold out.
            extractor: Computes the features of all images.
            size: Side in pixels of the images that the models generate.
            samples: Samples of each set at each guidance setting.
            batch_size: Images that a model generates at once.

        Raises:
            ConfigError: The attributes of the images are not known.
            DataError: There is no such set, or its images have another size.
        """
        self._sets = [_Set(name, size, extractor, samples) for name in (split_names(reference) or (reference,))]
        self._network, self._batch_size = extractor.name, batch_size

    def without_samples(self, pipeline: Pipeline) -> dict[str, Any]:
        """Return, by set, the bits of real images, and between what bounds the attributes of samples lie."""
        return {
            "sets": {
                each.name: {
                    "images": len(each.captioned.chosen),
                    "bits_per_token": each.bits(pipeline)._asdict(),
                    "attributes_of_real_images": each.bounds(pipeline).to_dict(),
                }
                for each in self._sets
            }
        }

    def __call__(self, pipeline: Pipeline, sampling: SamplingConfig) -> dict[str, Any]:
        """Return, by set, the metrics of ``aimamba evaluate-text``, and the ``network`` that distances come from."""
        sets = {each.name: each.metrics(pipeline, sampling, self._batch_size) for each in self._sets}
        return {"network": self._network, "sets": sets}


class _Set:
    """One of the sets. What does not depend on a model is computed once, when it is needed."""

    def __init__(self, name: str, size: int, extractor: Extractor, samples: int) -> None:
        images = open_source(name, default_size=size, progress=True)
        if not isinstance(images, CaptionedAvatars):
            raise ConfigError(
                f"judging.reference {name}: the attributes of its images are not known; name captioned avatars, such "
                "as captioned-avatars-64"
            )
        if images.size != size:
            raise DataError(
                f"judging.reference {name} has images of {images.size} pixels, the models generate {size}; name a set "
                f"of {size} pixels"
            )
        self.name, self.captioned = name, CaptionedImages(images)
        self._images, self._extractor = images, extractor
        self._captions = self.captioned.captions(samples)
        self._bounds: AttributeBounds | None = None

    @cached_property
    def _judge(self) -> Judge:
        return make_judge(self.captioned, self._extractor, progress=True)

    def bits(self, pipeline: Pipeline) -> CaptionBits:
        """Return the bits of real images."""
        return bits_of_set(self.captioned, self._codes(pipeline), pipeline, self._asked(pipeline), progress=True)

    def bounds(self, pipeline: Pipeline) -> AttributeBounds:
        """Return the bounds of samples; all models of a study have one tokenizer, so they are the same for all."""
        if self._bounds is None:
            reader = self._judge.reader
            assert reader is not None
            self._bounds = attribute_bounds(self.captioned, self._codes(pipeline), pipeline, reader, progress=True)
        return self._bounds

    def metrics(self, pipeline: Pipeline, sampling: SamplingConfig, batch_size: int) -> dict[str, Any]:
        """Return the metrics of samples."""
        asked = self._asked(pipeline)
        given = [asked(caption) for caption in self._captions]
        samples = PromptedSource(f"samples for {self.name}", pipeline, given, sampling, batch_size)
        return judge_samples(samples, self._captions, self._judge, sampling.cfg_scale, progress=True).to_dict()

    def _codes(self, pipeline: Pipeline) -> Int[Tensor, "n l"]:
        return encode_source(self._images, pipeline, progress=True)[:, 0]

    def _asked(self, pipeline: Pipeline) -> Callable[[Caption], int | Prompt]:
        """Return what asks a model for what a caption says."""
        if pipeline.generator.config.text is not None:
            return lambda caption: Prompt.of_caption(caption.text)
        labels = [pipeline.label(name) for name in self._images.class_names]
        return lambda caption: labels[self._images.labels[caption.image]]
