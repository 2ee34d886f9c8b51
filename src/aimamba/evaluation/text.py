"""One evaluation of a generator that takes captions: opens the sets, samples the model, computes the metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.config import check, to_mapping
from aimamba.data.captioned import CaptionedAvatars
from aimamba.errors import DataError
from aimamba.evaluation.attribute_reader import TRAINED_ON, AttributeReader, trained_reader
from aimamba.evaluation.attributes import attribute_accuracy
from aimamba.evaluation.caption_bits import CaptionBits, caption_bits, caption_likelihoods
from aimamba.evaluation.captioned_set import Caption, CaptionedImages, Gallery, split_names
from aimamba.evaluation.codes import Reconstructions, encode_source
from aimamba.evaluation.compare import distances
from aimamba.evaluation.features import Extractor, open_extractor
from aimamba.evaluation.kept_codes import KeptCodes
from aimamba.evaluation.measure import SetFeatures, measure, measure_cached
from aimamba.evaluation.prompted import PromptedSource
from aimamba.evaluation.retrieval import CANDIDATES, cosine_to_subjects, retrieval
from aimamba.evaluation.settings import check_sweep, general_settings
from aimamba.evaluation.sources import Source, open_source
from aimamba.evaluation.text_metrics import AttributeBounds, SampleMetrics, SetMetrics
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline, Prompt

DEFAULT_COUNT = 2000
BITS_OF = 512
"""Real images whose bits are measured, unless there are fewer."""


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What to evaluate and how.

    Attributes:
        images: Name of a set of real images with captions, as ``open_source`` takes it. Without a split a named set
            stands for all that it holds out.
        model: Name of the model.
        count: Samples of each set at each guidance scale.
        sampling: How the model is sampled.
        sweep: Further guidance scales, or None.
        batch_size: Images that are generated at once.
        dtype: Precision of the model; recorded in the settings.
        features: Network that compares images: ``lite0``, ``inception``, or the file of Inception's weights.
        size: Side in pixels to which images of folders are cropped and scaled; by default the model's.

    Raises:
        ConfigError: A number is out of range.
    """

    images: str
    model: str
    count: int = DEFAULT_COUNT
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    sweep: tuple[float, ...] | None = None
    batch_size: int = 16
    dtype: str = "float32"
    features: str = "lite0"
    size: int | None = None

    def __post_init__(self) -> None:
        check(self.count >= 2, f"-n must be at least 2, got {self.count}")
        check(self.batch_size >= 1, f"--batch-size must be at least 1, got {self.batch_size}")
        check_sweep(self.sweep)

    @property
    def scales(self) -> list[float]:
        """All guidance scales, in rising order."""
        return sorted({self.sampling.cfg_scale, *(self.sweep or ())})

    @property
    def set_names(self) -> tuple[str, ...]:
        """Names of the sets to measure.

        Raises:
            DataError: There is no such set.
        """
        return split_names(self.images) or (self.images,)


Keep = Callable[[Sequence[Prompt], SamplingConfig], KeptCodes | None]
"""Returns where the codes of samples after some prompts are kept."""


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """The result of an evaluation.

    Attributes:
        network: Name of the network that compared images.
        sets: What was measured on each set.
        settings: Everything that the metrics depend on, ready for JSON.
    """

    network: str
    sets: tuple[SetMetrics, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object with every metric and setting."""
        return {self.network: {each.name: each.to_dict() for each in self.sets}, "settings": self.settings}


def check_takes_captions(pipeline: Pipeline, name: str) -> None:
    """Check that a model takes captions.

    Raises:
        ConfigError: It takes classes alone.
    """
    check(
        pipeline.generator.config.text is not None,
        f"{name}: this generator takes classes and no captions; 'aimamba evaluate' measures it",
    )


def open_sets(request: TextRequest, pipeline: Pipeline, *, progress: bool = False) -> list[CaptionedImages]:
    """Open the sets of a request.

    Raises:
        DataError: There is no such set, it has no captions, or its images have another size than the model's.
    """
    found = []
    for name in request.set_names:
        images = open_source(name, size=request.size, default_size=pipeline.image_size, progress=progress)
        if images.size != pipeline.image_size:
            raise DataError(
                f"{name} has images of {images.size} x {images.size} pixels, and the model's have "
                f"{pipeline.image_size}; give images of that size (--size scales folders)"
            )
        found.append(CaptionedImages(images))
    return found


def evaluate_text(
    request: TextRequest,
    pipeline: Pipeline,
    *,
    device: torch.device | str = "cpu",
    keep: Keep | None = None,
    progress: bool = False,
) -> TextEvaluation:
    """Measure whether the samples of a model show what their captions say.

    Args:
        request: What to evaluate and how.
        pipeline: The loaded ``request.model``.
        device: Where the network runs that computes features.
        keep: Where the codes of samples are kept, so that an interrupted evaluation goes on with them.
        progress: Show bars on stderr.

    Raises:
        ConfigError: The model takes no captions, or a setting is out of range.
        DataError: A set cannot be opened, or does not fit.
        CheckpointError: Inception's weights are missing, cannot be downloaded, or are not the published ones.
    """
    check_takes_captions(pipeline, request.model)
    sets = open_sets(request, pipeline, progress=progress)
    extractor = open_extractor(request.features, device=device)
    return TextEvaluation(
        network=extractor.name,
        sets=tuple(_measure(each, request, pipeline, extractor, keep, progress=progress) for each in sets),
        settings={
            "model": request.model,
            "fingerprint": pipeline.fingerprint(),
            "sampling": to_mapping(request.sampling),
            "guidance_scales": request.scales,
            "dtype": request.dtype,
            "size": pipeline.image_size,
            "candidates": CANDIDATES,
            "reader_trained_on": TRAINED_ON,
            **general_settings(extractor),
        },
    )


class Judge(NamedTuple):
    """What the samples of a set are compared with.

    Attributes:
        extractor: Computes features.
        real: Features of the real images.
        gallery: Among which images samples look for what they show.
        vectors: Features of the gallery.
        subjects: What each real image shows, as the gallery numbers it.
        designs: In which design, likewise; None where there are none.
        reader: Reads attributes, where the captions' are known.
    """

    extractor: Extractor
    real: SetFeatures
    gallery: Gallery
    vectors: Float[Tensor, "m d"]
    subjects: Int[Tensor, " n"]
    designs: Int[Tensor, " n"] | None = None
    reader: AttributeReader | None = None


def _measure(
    captioned: CaptionedImages,
    request: TextRequest,
    pipeline: Pipeline,
    extractor: Extractor,
    keep: Keep | None,
    *,
    progress: bool,
) -> SetMetrics:
    """Measure one set."""
    images = captioned.images
    codes = encode_source(images, pipeline, progress=progress)[:, 0]
    shown, texts = _columns(captioned.distinct(CANDIDATES))
    likely = caption_likelihoods(pipeline, codes[shown], texts, progress=progress)
    judge = make_judge(captioned, extractor, progress=progress)
    bounds = None
    if judge.reader is not None:
        bounds = attribute_bounds(captioned, codes, pipeline, judge.reader, progress=progress)
    captions = captioned.captions(request.count)
    prompts = [_prompt(caption) for caption in captions]
    samples = PromptedSource(
        request.model,
        pipeline,
        prompts,
        replace(request.sampling, cfg_scale=request.scales[0]),
        request.batch_size,
        keep=None if keep is None else partial(keep, prompts),
    )
    return SetMetrics(
        name=images.name,
        images=len(captioned.chosen),
        samples=len(captions),
        bits=bits_of_set(captioned, codes, pipeline, _prompt, progress=progress),
        likeliest=retrieval(likely, torch.arange(len(shown))),
        bounds=bounds,
        guidance=tuple(
            judge_samples(samples.guided(scale), captions, judge, scale, progress=progress) for scale in request.scales
        ),
    )


def bits_of_set(
    captioned: CaptionedImages,
    codes: Int[Tensor, "n l"],
    pipeline: Pipeline,
    asked: Callable[[Caption], int | Prompt],
    *,
    progress: bool = False,
) -> CaptionBits:
    """Measure bits a token of up to ``BITS_OF`` images of a set.

    Args:
        captioned: The set.
        codes: Codes of all its images.
        pipeline: The model.
        asked: Returns the prompt or the class that stands for a caption.
        progress: Show a bar on stderr.
    """
    own = captioned.own()[:BITS_OF]
    right = [asked(caption) for caption in own]
    shown = [caption.image for caption in own]
    return caption_bits(pipeline, codes[shown], right, [*right[1:], right[0]], progress=progress)


def make_judge(captioned: CaptionedImages, extractor: Extractor, *, progress: bool = False) -> Judge:
    """Return what samples of captions of a set are compared with. Features of real images are cached."""
    images, reader = captioned.images, None
    if isinstance(images, CaptionedAvatars):
        train = CaptionedAvatars(images.size, "train", TRAINED_ON, images.class_names, progress=progress)
        reader = trained_reader(train, progress=progress)
    gallery = captioned.gallery()
    real = measure_cached(images, extractor, progress=progress)
    others = real if gallery.images is images else measure_cached(gallery.images, extractor, progress=progress)
    designs = None if gallery.designs is None or images.labels is None else torch.from_numpy(images.labels)
    return Judge(extractor, real, gallery, others.vectors, torch.from_numpy(captioned.subjects), designs, reader)


def judge_samples(
    samples: Source, captions: Sequence[Caption], judge: Judge, scale: float, *, progress: bool = False
) -> SampleMetrics:
    """Compare samples with their captions, and with real images.

    Args:
        samples: An image for each caption.
        captions: What the samples are to show.
        judge: What they are compared with.
        scale: Guidance scale of the samples.
        progress: Show bars on stderr.

    Raises:
        DataError: Features contain NaN or infinity.
    """
    features, gallery = measure(samples, judge.extractor, progress=progress), judge.gallery
    of, subjects = torch.tensor([caption.image for caption in captions]), int(judge.subjects.max()) + 1

    def found(queries: Tensor, images: Tensor) -> Float[Tensor, "n s"]:
        """Return the similarity of some samples with the subjects of some images of the gallery."""
        vectors = features.vectors[queries], judge.vectors[images]
        return cosine_to_subjects(*vectors, gallery.subjects[images], subjects)

    everything = torch.arange(len(captions)), torch.arange(len(gallery.subjects))
    right, same = judge.subjects[of], None
    if gallery.designs is not None and judge.designs is not None:
        asked = judge.designs[of]
        similarity = torch.empty(len(captions), subjects, dtype=torch.float32)
        for design in asked.unique():
            chosen = (asked == design).nonzero().squeeze(1)
            similarity[chosen] = found(chosen, (gallery.designs == design).nonzero().squeeze(1))
        same = retrieval(similarity, right)
    attributes = None
    if judge.reader is not None:
        seen = judge.reader.read_all(samples, progress=progress)
        attributes = attribute_accuracy(seen, [caption.mentions or {} for caption in captions])
    return SampleMetrics(
        cfg_scale=scale,
        distances=distances(features, judge.real, progress=progress),
        retrieval=retrieval(found(*everything), right),
        same_design=same,
        attributes=attributes,
    )


def attribute_bounds(
    captioned: CaptionedImages,
    codes: Int[Tensor, "n l"],
    pipeline: Pipeline,
    reader: AttributeReader,
    *,
    progress: bool = False,
) -> AttributeBounds:
    """Return what is read on the real images of a set with their captions and with those of others.

    Args:
        captioned: The set.
        codes: Codes of all its images.
        pipeline: Holds the tokenizer, which reconstructs the images.
        reader: Reads attributes.
        progress: Show bars on stderr.
    """
    own, images = captioned.own(), captioned.images
    reconstructed = Reconstructions(images, codes, pipeline)
    shown, _ = _columns(own)
    right = [caption.mentions or {} for caption in own]
    real, blurred = (reader.read_all(each, progress=progress) for each in (images, reconstructed))
    real, blurred = ([seen[index] for index in shown] for seen in (real, blurred))
    return AttributeBounds(
        ceiling=attribute_accuracy(real, right),
        reconstructed=attribute_accuracy(blurred, right),
        floor=attribute_accuracy(real, [*right[1:], right[0]]),
    )


def _prompt(caption: Caption) -> Prompt:
    return Prompt.of_caption(caption.text)


def _columns(captions: Sequence[Caption]) -> tuple[list[int], list[str]]:
    return [caption.image for caption in captions], [caption.text for caption in captions]
