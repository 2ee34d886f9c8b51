"""All numbers of one set of images against a reference, under the name of the network that looked."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from aimamba.errors import DataError
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.frechet import frechet_distance
from aimamba.evaluation.kernel import SUBSETS, kernel_distance
from aimamba.evaluation.manifold import precision_recall
from aimamba.evaluation.measure import Measured, check_enough, measure_set
from aimamba.evaluation.neighbours import VOTERS, Nearest, copying, nearest, recognition
from aimamba.evaluation.sources import Source

_SHOWN_NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found.

    Attributes:
        network: Whose features were compared.
        numbers: Metrics by name; ``recognition`` and ``neighbours`` hold several.
        nearest: The five nearest training images of every sample, where a training set was given.
        unseen: Cosine of each reference image with its nearest training image, (m,), likewise.
    """

    network: str
    numbers: dict[str, Any]
    nearest: Nearest | None = None
    unseen: Tensor | None = None


def compare(
    samples: Source, reference: Source, extractor: Extractor, *, train: Source | None = None, progress: bool = False
) -> Comparison:
    """Measure samples.

    Args:
        samples: What is judged.
        reference: Real images. Measured once and kept.
        extractor: The network.
        train: What the model has learned from; the samples are searched for copies of it. Kept as well.
        progress: Show bars on stderr.

    Raises:
        DataError: The sets differ in size of their images, are too small, or the features are no numbers.
    """
    if 0 not in (samples.size, reference.size) and samples.size != reference.size:
        raise DataError(
            f"{samples.name} has images of {samples.size} x {samples.size} pixels, {reference.name} of "
            f"{reference.size} x {reference.size}: give sets of one size (--size scales folders)"
        )
    check_enough(samples)
    real = measure_set(reference, extractor, keep=True, progress=progress)
    drawn = measure_set(samples, extractor, keep=False, progress=progress)
    device = extractor.device if extractor.device.type == "cuda" else torch.device("cpu")
    numbers = distances(drawn, real, device=device, progress=progress)
    if len(real.vectors):
        rows = 2 * len(real.vectors) + len(drawn.vectors)
        with tqdm(total=rows, desc="precision and recall", unit="image", disable=not progress) as bar:
            vectors = drawn.vectors.to(device), real.vectors.to(device)
            shares = precision_recall(*vectors, half=extractor.name == "inception", advance=bar.update)
        numbers |= shares._asdict()
    labels = common_labels(samples, reference)
    if labels is not None and len(real.vectors) > VOTERS:
        numbers["recognition"] = _recognition(drawn, real, labels, reference)
    near, unseen = None, None
    if train is not None:
        learned = measure_set(train, extractor, keep=True, progress=progress).vectors.to(device)
        near = nearest(drawn.vectors.to(device), learned, min(_SHOWN_NEIGHBOURS, len(learned)))
        unseen = nearest(real.vectors.to(device), learned, 1).similarities[:, 0]
        numbers["neighbours"] = {"train": train.name, **copying(near.similarities[:, 0], unseen)._asdict()}
    return Comparison(network=extractor.name, numbers=numbers, nearest=near, unseen=unseen)


def distances(
    samples: Measured, reference: Measured, *, device: torch.device | str = "cpu", progress: bool = False
) -> dict[str, Any]:
    """Fréchet and kernel distance; for Inception by their published names, with sFID and Inception score.

    Args:
        samples: What is judged.
        reference: Real images; of statistics alone only Fréchet distances can be given.
        device: Where to compare vectors; covariances are always compared on CPU in float64.
        progress: Show bars on stderr.

    Raises:
        DataError: The two were measured with different networks, or one has too few images.
    """
    if samples.network != reference.network:
        raise DataError(
            f"samples were measured with {samples.network} and the reference with {reference.network}: "
            "use the same network for both"
        )
    inception = samples.network == "inception"
    numbers: dict[str, Any] = {
        "fid" if inception else "frechet": frechet_distance(samples.gaussian, reference.gaussian)
    }
    if inception and samples.spatial is not None and reference.spatial is not None:
        numbers["sfid"] = frechet_distance(samples.spatial, reference.spatial)
    if samples.inception_score is not None:
        numbers["inception_score"] = samples.inception_score
    if len(samples.vectors) and len(reference.vectors):
        with tqdm(total=SUBSETS, desc="kernel distance", unit="subset", disable=not progress) as bar:
            kernel = kernel_distance(samples.vectors.to(device), reference.vectors.to(device), advance=bar.update)
        numbers |= {"kid": kernel.mean, "kid_std": kernel.std, "kid_subset_size": kernel.subset_size}
    return numbers


def common_labels(samples: Source, reference: Source) -> Int64[Tensor, " n"] | None:
    """Classes of the samples in the reference's numbering: by name, or by number where a side has no names.

    Returns:
        (n,) labels, or None where a side has no labels or the classes are not the same.
    """
    if samples.labels is None or reference.labels is None:
        return None
    labels = torch.from_numpy(samples.labels)
    if not (samples.class_names and reference.class_names):
        known = len(reference.class_names) or int(reference.labels.max()) + 1
        return labels if len(samples.class_names or range(known)) == known > int(labels.max()) else None
    if set(samples.class_names) != set(reference.class_names):
        return None
    return torch.tensor([reference.class_names.index(name) for name in samples.class_names])[labels]


def _recognition(drawn: Measured, real: Measured, labels: Tensor, reference: Source) -> dict[str, Any]:
    assert reference.labels is not None
    truth = torch.from_numpy(reference.labels)
    names = reference.class_names or tuple(map(str, range(int(truth.max()) + 1)))
    judged = recognition(drawn.vectors, labels, real.vectors, truth, names)
    itself = recognition(real.vectors, truth, real.vectors, truth, names, same=True)
    return {**judged._asdict(), "reference": {"share": itself.share, "majority": itself.majority}}
