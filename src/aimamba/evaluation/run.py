"""One evaluation as a request and its result: opens the sets, samples the model, computes the metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from aimamba.config import check, to_mapping
from aimamba.data.images import Images
from aimamba.data.merged import MergedImages
from aimamba.data.spec import training_set_of
from aimamba.errors import ConfigError, DataError, Faults
from aimamba.evaluation import protocol
from aimamba.evaluation.compare import Comparison, check_sets, compare
from aimamba.evaluation.features import Extractor, open_extractor
from aimamba.evaluation.kept_codes import KeptCodes
from aimamba.evaluation.metrics import GuidanceMetrics, Metrics
from aimamba.evaluation.settings import about_images, check_sweep, general_settings
from aimamba.evaluation.sources import MOST_SAMPLES, ModelSource, Source, make_labels, open_source, save_source
from aimamba.evaluation.weights import inception_weights
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline
from aimamba.sharing import ALONE, Sharing

DEFAULT_COUNT = 5000
DEFAULT_LABELS = "balanced"
NO_TRAINING_SET = "none"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate and how. Sets are named as ``open_source`` takes them.

    Attributes:
        reference: Real images.
        samples: The images to evaluate; several sets are measured as one. None to sample a model.
        model: Name of the model to sample, or None if ``samples`` are given.
        train: Training images, to search for copies; ``none`` for no search. By default those that belong to a named
            held-out reference.
        count: Samples of the model; 5,000 by default, 50,000 with the protocol.
        labels: ``balanced`` (default: classes in turn) or ``random`` (default with the protocol).
        sampling: How the model is sampled.
        batch_size: Images that the model generates at once.
        dtype: Precision of the model; recorded in the settings.
        sweep: Further guidance scales to measure, or None.
        protocol: ``aim-paper``, or None.
        features: Network: ``lite0``, ``inception``, or the file of Inception's weights; by default ``inception`` with
            the protocol, else ``lite0``.
        size: Side in pixels to which images of folders are cropped and scaled.
        skip_broken: Leave out image files that cannot be read, and count them.

    Raises:
        ConfigError: Settings contradict each other or are out of range.
    """

    reference: str
    samples: str | tuple[str, ...] | None = None
    model: str | None = None
    train: str | None = None
    count: int | None = None
    labels: str | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 16
    dtype: str = "float32"
    sweep: tuple[float, ...] | None = None
    protocol: str | None = None
    features: str | None = None
    size: int | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        known = " or ".join(protocol.PROTOCOLS)
        check(self.protocol in (None, *protocol.PROTOCOLS), f"--protocol must be {known}, got {self.protocol!r}")
        check((not self.sample_sets) != (self.model is None), "evaluate: give either SAMPLES or --model MODEL")
        if self.model is None:
            check(
                self.protocol is None and self.sweep is None,
                "evaluate: --protocol and --sweep sample a model, so they need --model MODEL",
            )
            check(
                self.count is None and self.labels is None,
                "evaluate: -n and --labels describe the samples of a model, so they need --model MODEL",
            )
        if self.protocol is not None:
            check(
                self.labels in (None, protocol.LABELS),
                f"--protocol {self.protocol} fixes labels {protocol.LABELS}, got {self.labels}",
            )
            check(
                self.count is None or self.count <= protocol.IMAGES,
                f"--protocol {self.protocol} takes {protocol.IMAGES} samples, fewer for a rehearsal; got {self.count}",
            )
        check(
            self.count is None or 1 <= self.count <= MOST_SAMPLES,
            f"-n must be from 1 to {MOST_SAMPLES:,}, got {self.count}",
        )
        check(self.batch_size >= 1, f"--batch-size must be at least 1, got {self.batch_size}")
        check_sweep(self.sweep)

    @property
    def sample_sets(self) -> tuple[str, ...]:
        """Names of the sets of samples; empty if a model is sampled."""
        return (self.samples,) if isinstance(self.samples, str) else self.samples or ()

    @property
    def sample_count(self) -> int:
        """Number of samples of the model."""
        return self.count or (DEFAULT_COUNT if self.protocol is None else protocol.IMAGES)

    @property
    def labelling(self) -> str:
        """How the classes of the samples are chosen."""
        return self.labels or (DEFAULT_LABELS if self.protocol is None else protocol.LABELS)

    @property
    def network(self) -> str:
        """The network that computes the features."""
        return self.features or ("lite0" if self.protocol is None else "inception")

    @property
    def rehearsal(self) -> str | None:
        """How the request falls short of its protocol; its numbers then cannot be compared with published ones."""
        if self.protocol is None:
            return None
        short = [f"{self.sample_count:,} of {protocol.IMAGES:,} samples"] * (self.sample_count < protocol.IMAGES)
        short += ["lite0 in place of Inception"] * (self.network == "lite0")
        return f"{', '.join(short)}: not comparable with published numbers" if short else None

    @property
    def training_set(self) -> str | None:
        """The training set, or None for no search for copies."""
        if self.train is not None:
            return None if self.train == NO_TRAINING_SET else self.train
        return training_set_of(self.reference)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        comparison: The metrics.
        settings: Everything that the metrics depend on, ready for JSON.
        samples: The images that were evaluated.
        reference: Real images.
        train: Training images, if there were any.
    """

    comparison: Comparison
    settings: dict[str, Any]
    samples: Source
    reference: Source
    train: Source | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object with every metric and setting."""
        return {self.comparison.network: self.comparison.metrics.to_dict(), "settings": self.settings}


def evaluate(
    request: EvaluationRequest,
    *,
    pipeline: Pipeline | None = None,
    device: torch.device | str = "cpu",
    keep: Callable[[SamplingConfig], KeptCodes | None] | None = None,
    save_npz: Path | None = None,
    progress: bool = False,
    sharing: Sharing = ALONE,
    faults: Faults | None = None,
) -> Evaluation:
    """Compare samples, or samples of a model, with real images.

    Args:
        request: What to evaluate and how.
        pipeline: The loaded ``request.model``.
        device: Where the network runs that computes the features.
        keep: Where the codes of a model's samples are kept, see ``ModelSource``.
        save_npz: Write the samples to this file as well, before they are measured.
        progress: Show bars on stderr.
        sharing: The processes that share sampling and features; the first one computes the numbers and returns them.
        faults: What was found to be missing before, to be reported with what is found missing here.

    Raises:
        ConfigError: The pipeline is missing or does not fit the protocol, or a setting is out of range.
        DataError: A set cannot be opened, is too small, or does not fit the other sets.
        CheckpointError: Inception's weights are missing, cannot be downloaded, or are not the published ones.
    """
    prepared = sharing.in_turn(lambda: _prepare(request, pipeline, device, keep, faults or Faults(), progress))
    samples, settings, reference, train, extractor = prepared
    if save_npz is not None:
        with tqdm(total=len(samples), desc=f"saving {samples.name}", unit="image", disable=not progress) as bar:
            save_source(samples, save_npz, bar.update, sharing=sharing)
    found = compare(samples, reference, extractor, train=train, progress=progress, sharing=sharing)
    if request.sweep and isinstance(samples, ModelSource):
        known = {samples.config.cfg_scale: found.metrics}
        guidance = _sweep(samples, request.sweep, reference, extractor, known, progress=progress, sharing=sharing)
        found = replace(found, metrics=replace(found.metrics, guidance=guidance))
    return Evaluation(
        comparison=found,
        settings={
            "samples": {**about_images(samples), "size": samples.size, **settings},
            "reference": {**about_images(reference), "size": reference.size},
            **({} if train is None else {"train": about_images(train)}),
            **({} if request.protocol is None else {"protocol": request.protocol}),
            **({} if request.rehearsal is None else {"rehearsal": request.rehearsal}),
            **general_settings(extractor),
        },
        samples=samples,
        reference=reference,
        train=train,
    )


class _Prepared(NamedTuple):
    """All that an evaluation needs; see ``Evaluation``."""

    samples: Source
    settings: dict[str, Any]
    reference: Source
    train: Source | None
    extractor: Extractor


def _prepare(
    request: EvaluationRequest,
    pipeline: Pipeline | None,
    device: torch.device | str,
    keep: Callable[[SamplingConfig], KeptCodes | None] | None,
    faults: Faults,
    progress: bool,
) -> _Prepared:
    """Open all sets and load the network, and check that they belong together, before anything is sampled.

    Raises:
        AimambaError: Something is missing or does not fit; the message names everything that is known to be.
    """
    opened = faults.attempt(lambda: _open_samples(request, pipeline, keep, progress=progress))
    reference = train = None
    if opened is not None:
        size, name = opened[0].size or None, request.training_set
        reference = faults.attempt(lambda: open_reference(request, size, progress=progress))
        train = None if name is None else faults.attempt(lambda: _open(request, name, size, progress=progress))
    extractor = faults.attempt(lambda: open_extractor(request.network, device=device))
    if opened is not None and reference is not None:
        samples = opened[0]
        faults.attempt(lambda: check_sets(samples, reference, train))
    faults.report()
    assert opened is not None
    assert reference is not None
    assert extractor is not None
    return _Prepared(*opened, reference, train, extractor)


def check_rest(request: EvaluationRequest, faults: Faults) -> None:
    """Note what an evaluation lacks besides its model, which is missing."""
    if request.network != "lite0":
        faults.attempt(lambda: inception_weights(request.network))
    if request.reference.endswith(".npz"):
        faults.attempt(lambda: open_reference(request, None))


def open_reference(request: EvaluationRequest, size: int | None, *, progress: bool = False) -> Images:
    """Open the reference of an evaluation.

    Args:
        request: The evaluation.
        size: Side in pixels where neither the request nor the name has one.
        progress: Show a bar on stderr.

    Raises:
        DataError: There is no such set, or it is not what the protocol needs.
    """
    paper = request.protocol is not None and request.network != "lite0"
    try:
        reference = _open(request, request.reference, size, progress=progress)
    except DataError as error:
        if paper and not Path(request.reference).exists():
            raise DataError(f"{error}; {protocol.REFERENCE}") from error
        raise
    if paper:
        protocol.check_paper_reference(reference)
    return reference


def _open(request: EvaluationRequest, name: str, default_size: int | None, *, progress: bool) -> Images:
    skip = request.skip_broken
    return open_source(name, size=request.size, default_size=default_size, skip_broken=skip, progress=progress)


def _open_samples(
    request: EvaluationRequest,
    pipeline: Pipeline | None,
    keep: Callable[[SamplingConfig], KeptCodes | None] | None,
    *,
    progress: bool,
) -> tuple[Source, dict[str, Any]]:
    """Return the samples, and how they are generated if they come from a model."""
    if request.sample_sets:
        opened = [_open(request, name, None, progress=progress) for name in request.sample_sets]
        return opened[0] if len(opened) == 1 else MergedImages(opened), {}
    if pipeline is None or request.model is None:
        raise ConfigError(f"evaluate: {request.model} is not loaded; pass the loaded Pipeline as pipeline")
    shape = pipeline.generator.config
    config = request.sampling if request.protocol is None else protocol.aim_paper(request.sampling, shape)
    labels = make_labels(request.labelling, request.sample_count, shape.num_classes, config.seed)
    return ModelSource(request.model, pipeline, labels, config, request.batch_size, keep=keep), {
        "fingerprint": pipeline.fingerprint(),
        "labels": request.labelling,
        "sampling": to_mapping(config),
        "decode_position_shift": shape.decode_position_shift,
        "dtype": request.dtype,
    }


def _sweep(
    samples: ModelSource,
    scales: Sequence[float],
    reference: Source,
    extractor: Extractor,
    known: dict[float, Metrics],
    *,
    progress: bool,
    sharing: Sharing,
) -> tuple[GuidanceMetrics, ...]:
    """Return metrics by guidance scale in rising order; ``known`` are those of some scales."""
    for scale in scales:
        if scale not in known:
            guided = samples.guided(scale)
            known[scale] = compare(guided, reference, extractor, progress=progress, sharing=sharing).metrics
    return tuple(GuidanceMetrics(cfg_scale=scale, metrics=found) for scale, found in sorted(known.items()))
