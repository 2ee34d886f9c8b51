"""All metrics of one set of images against a reference, with the name of the network whose features they compare."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from aimamba.data.class_names import match_classes, match_numbers
from aimamba.errors import DataError
from aimamba.evaluation.copies import check_search, search_copies
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.frechet import frechet_distance
from aimamba.evaluation.kernel import SUBSETS, kernel_distance
from aimamba.evaluation.manifold import check_neighbours, precision_recall
from aimamba.evaluation.measure import SetFeatures, check_enough, measure_set
from aimamba.evaluation.metrics import Metrics, Recognition
from aimamba.evaluation.neighbours import VOTERS, Nearest, knn_accuracy
from aimamba.evaluation.sources import Source
from aimamba.sharing import ALONE, Sharing


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Metrics of samples against a reference, and the nearest training images.

    Attributes:
        network: Name of the network whose features were compared.
        metrics: The metrics.
        nearest: The five nearest training images of every sample, where a training set was given.
        held_out_similarities: Cosine of each reference image with its nearest training image, (m,), likewise.
    """

    network: str
    metrics: Metrics
    nearest: Nearest | None = None
    held_out_similarities: Tensor | None = None


def compare(
    samples: Source,
    reference: Source,
    extractor: Extractor,
    *,
    train: Source | None = None,
    progress: bool = False,
    sharing: Sharing = ALONE,
) -> Comparison:
    """Compare samples with a reference.

    Args:
        samples: The images to evaluate.
        reference: Real images. Their features are cached.
        extractor: Computes the features.
        train: Training images of the model, to search for copies among the samples. Their features are cached too. If
            the samples come from a ``ModelSource``, they are compared with reconstructions and by codes.
        progress: Show bars on stderr.
        sharing: The processes that share sampling and features. The first one computes the metrics from them and
            returns them; the others return none.

    Raises:
        DataError: The image sizes of the sets differ, a set is too small, or features contain NaN or infinity.
    """
    check_sets(samples, reference, train)
    real = measure_set(reference, extractor, keep=True, progress=progress, sharing=sharing)
    generated = measure_set(samples, extractor, keep=False, progress=progress, sharing=sharing)
    device = extractor.device if extractor.device.type == "cuda" else torch.device("cpu")

    def found() -> Metrics:
        return all_metrics(samples, generated, reference, real, device=device, progress=progress)

    metrics = sharing.in_first(found, Metrics())
    if train is None:
        return Comparison(network=extractor.name, metrics=metrics)
    sets = samples, generated, reference, real, train
    search = search_copies(*sets, extractor, device=device, progress=progress, sharing=sharing)
    if search is None:
        return Comparison(network=extractor.name, metrics=metrics)
    return Comparison(
        network=extractor.name,
        metrics=replace(metrics, neighbours=search.neighbours),
        nearest=search.nearest,
        held_out_similarities=search.held_out_similarities,
    )


def all_metrics(
    samples: Source,
    generated: SetFeatures,
    reference: Source,
    real: SetFeatures,
    *,
    device: torch.device,
    progress: bool = False,
) -> Metrics:
    """Return all metrics but the search for copies, from features that are measured; errors as of ``compare``."""
    metrics = distances(generated, real, device=device, progress=progress)
    if len(real.vectors):
        rows = 2 * len(real.vectors) + len(generated.vectors)
        with tqdm(total=rows, desc="precision and recall", unit="image", disable=not progress) as bar:
            vectors = generated.vectors.to(device), real.vectors.to(device)
            shares = precision_recall(*vectors, half=generated.network == "inception", advance=bar.update)
        metrics = replace(metrics, precision=shares.precision, recall=shares.recall)
    labels = common_labels(samples, reference)
    if labels is not None and len(real.vectors) > VOTERS:
        metrics = replace(metrics, recognition=_recognition(generated, real, labels, reference))
    return metrics


def check_sets(samples: Source, reference: Source, train: Source | None = None) -> None:
    """Check that sets can be compared, before anything is measured.

    Raises:
        DataError: The image sizes of the sets differ, or a set is too small or has no images to search.
    """
    if 0 not in (samples.size, reference.size) and samples.size != reference.size:
        raise DataError(
            f"{samples.name} has images of {samples.size} x {samples.size} pixels, {reference.name} of "
            f"{reference.size} x {reference.size}: give sets of one size (--size scales folders)"
        )
    check_enough(samples)
    if len(reference):  # not statistics alone
        check_neighbours(len(samples), len(reference))
    if train is not None:
        check_search(reference, train)


def distances(
    samples: SetFeatures, reference: SetFeatures, *, device: torch.device | str = "cpu", progress: bool = False
) -> Metrics:
    """Return Fréchet and kernel distance; for Inception under their published names, with sFID and Inception score.

    Args:
        samples: Features of the images to evaluate.
        reference: Features of real images; if it holds statistics alone, only Fréchet distances are computed.
        device: Where to compare vectors; covariances are always compared on CPU in float64.
        progress: Show bars on stderr.

    Raises:
        DataError: The features come from different networks, or a set has too few images.
    """
    if samples.network != reference.network:
        raise DataError(
            f"samples were measured with {samples.network} and the reference with {reference.network}: "
            "use the same network for both"
        )
    frechet = frechet_distance(samples.gaussian, reference.gaussian)
    one, other = (None if found.stored is not None else len(found.vectors) for found in (samples, reference))
    metrics = Metrics(frechet=frechet, inception_score=samples.inception_score, counts=(one, other))
    if samples.network == "inception":
        metrics = replace(metrics, fid=frechet, frechet=None)
        if samples.spatial is not None and reference.spatial is not None:
            metrics = replace(metrics, sfid=frechet_distance(samples.spatial, reference.spatial))
    if len(samples.vectors) and len(reference.vectors):
        with tqdm(total=SUBSETS, desc="kernel distance", unit="subset", disable=not progress) as bar:
            kernel = kernel_distance(samples.vectors.to(device), reference.vectors.to(device), advance=bar.update)
        metrics = replace(metrics, kid=kernel.mean, kid_std=kernel.std, kid_subset_size=kernel.subset_size)
    return metrics


def common_labels(samples: Source, reference: Source) -> Int64[Tensor, " n"] | None:
    """Return the samples' classes as the reference numbers them: matched by name, or by number without names.

    Names are matched by the rule of ``aimamba.data.class_names``.

    Returns:
        (n,) labels, or None if a set has no labels or the classes differ.
    """
    if samples.labels is None or reference.labels is None:
        return None
    labels = torch.from_numpy(samples.labels)
    if not (samples.class_names and reference.class_names):
        if not (match_numbers(samples.class_names) and match_numbers(reference.class_names)):
            return None  # label 2 need not be the class that is named "2"
        known = len(reference.class_names) or int(reference.labels.max()) + 1
        return labels if len(samples.class_names or range(known)) == known > int(labels.max()) else None
    places = match_classes(samples.class_names, reference.class_names)
    return None if places is None else torch.tensor(places)[labels]


def _recognition(generated: SetFeatures, real: SetFeatures, labels: Tensor, reference: Source) -> Recognition:
    assert reference.labels is not None
    truth = torch.from_numpy(reference.labels)
    names = reference.class_names or tuple(map(str, range(int(truth.max()) + 1)))
    return Recognition(
        samples=knn_accuracy(generated.vectors, labels, real.vectors, truth, names),
        reference=knn_accuracy(real.vectors, truth, real.vectors, truth, names, same=True),
    )
