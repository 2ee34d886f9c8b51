"""The metrics of one evaluation as a record, and the JSON object that it is written as."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from aimamba.evaluation.codes import CodeCopying
from aimamba.evaluation.neighbours import Copying, KnnAccuracy

ENOUGH = {
    **dict.fromkeys(("fid", "rfid", "frechet", "sfid", "rsfid", "precision", "recall"), 2048),
    "kid": 2000,
    "inception_score": 5000,
    "recognition": 400,
}
"""How many images of each set a number takes. Covariances of fewer than 2,048 images are singular (the width of
Inception's features), and precision and recall fall with them; kernel distances take two subsets of 1,000, an Inception
score a split of 5,000; 400 images leave an accuracy uncertain by 5 points (two standard errors)."""


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """5-NN accuracy of samples, and of the reference images themselves as an upper bound.

    Attributes:
        samples: Each sample is classified by its nearest reference images.
        reference: Each reference image is classified by its nearest other reference images.
    """

    samples: KnnAccuracy
    reference: KnnAccuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object ``recognition``."""
        return {
            "share": self.samples.unanimous,
            "majority": self.samples.majority,
            "per_class": dict(self.samples.per_class),
            "reference": {"share": self.reference.unanimous, "majority": self.reference.majority},
        }


@dataclass(frozen=True, kw_only=True)
class TrainingNeighbours:
    """How close samples are to the training images.

    Attributes:
        train: Name of the training set.
        copying: Similarity to the nearest training image, of samples and of held-out images.
        compared: What samples were compared with: ``originals``, or ``reconstructions`` by the model's tokenizer.
            Against originals, the tokenizer's blur can hide copies.
        codes: Comparison by codes, where the samples come from a model.
    """

    train: str
    copying: Copying
    compared: Literal["originals", "reconstructions"] = "originals"
    codes: CodeCopying | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object ``neighbours``."""
        codes = {} if self.codes is None else {"codes": self.codes._asdict()}
        return {"train": self.train, **self.copying._asdict(), "compared": self.compared, **codes}


@dataclass(frozen=True, kw_only=True)
class GuidanceMetrics:
    """Metrics of samples at one guidance scale."""

    cfg_scale: float
    metrics: "Metrics"

    @property
    def unanimous_accuracy(self) -> float | None:
        """5-NN accuracy (unanimous) of the samples, where it was measured."""
        found = self.metrics.recognition
        return None if found is None else found.samples.unanimous

    def to_dict(self) -> dict[str, float]:
        """Return one entry of the JSON list ``guidance``: the metrics that are one number, without nesting."""
        single = {key: value for key, value in self.metrics.to_dict().items() if isinstance(value, float)}
        accuracy = {} if self.unanimous_accuracy is None else {"recognised": self.unanimous_accuracy}
        return {"cfg_scale": self.cfg_scale, **single, **accuracy}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics of one set of images against a reference. What was not measured is None.

    Attributes:
        fid: Fréchet distance of Inception's features.
        rfid: The same between images and their reconstructions.
        frechet: Fréchet distance of another network's features.
        sfid: FID of Inception's spatial features.
        rsfid: The same between images and their reconstructions.
        inception_score: Inception score of the samples.
        kid: Kernel distance, mean over subsets; KID for Inception's features.
        kid_std: Its standard deviation over subsets.
        kid_subset_size: Images in a subset.
        precision: Share of the samples inside the manifold of the reference.
        recall: Share of the reference inside the manifold of the samples.
        recognition: 5-NN accuracy.
        neighbours: Closeness to training images.
        guidance: The same metrics at several guidance scales, in rising order; empty without a sweep.
        counts: Images of the set and of the reference; None where that is not known.
    """

    fid: float | None = None
    rfid: float | None = None
    frechet: float | None = None
    sfid: float | None = None
    rsfid: float | None = None
    inception_score: float | None = None
    kid: float | None = None
    kid_std: float | None = None
    kid_subset_size: int | None = None
    precision: float | None = None
    recall: float | None = None
    recognition: Recognition | None = None
    neighbours: TrainingNeighbours | None = None
    guidance: tuple[GuidanceMetrics, ...] = ()
    counts: tuple[int | None, int | None] = (None, None)

    @property
    def few_images(self) -> dict[str, tuple[int, int]]:
        """The numbers that were measured on fewer images than they take: how many there were, and how many it takes.

        They are those of the smaller set, and for the Inception score those of the set itself.
        """
        few = {}
        for name, enough in ENOUGH.items():
            counts = self.counts[:1] if name == "inception_score" else self.counts
            least = min((count for count in counts if count is not None), default=enough)
            if getattr(self, name) is not None and least < enough:
                few[name] = least, enough
        return few

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the metrics that were measured, in the order of the fields."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "counts":
                few = {name: {"images": count, "enough": enough} for name, (count, enough) in self.few_images.items()}
                found |= {"few_images": few} if few else {}
            elif isinstance(value, Recognition | TrainingNeighbours):
                found[field.name] = value.to_dict()
            elif isinstance(value, tuple):
                found |= {field.name: [entry.to_dict() for entry in value]} if value else {}
            elif value is not None:
                found[field.name] = value
        return found


@dataclass(frozen=True, kw_only=True)
class ReconstructionMetrics:
    """Errors of reconstructions, and how the codebook is used.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB, mean over images.
        ssim: Structural similarity, mean over images.
        ssim_llamagen: The same as LlamaGen computes it.
        lpips: LPIPS with VGG16, mean over images, where its weights were given.
        codes_used: Share of the codebook that occurs.
        perplexity: Perplexity of the codes.
    """

    psnr: float
    ssim: float
    ssim_llamagen: float
    lpips: float | None = None
    codes_used: float
    perplexity: float

    def to_dict(self) -> dict[str, float]:
        """Return the JSON object ``tokenizer``, without what was not measured."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
