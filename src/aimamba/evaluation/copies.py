"""The search for copies of training images among samples.

A tokenizer's blur moves every sample away from all originals, exact copies included. So samples of a model are compared
with training images as its tokenizer reconstructs them, and by their codes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aimamba.errors import DataError
from aimamba.evaluation.codes import CodeCopying, Reconstructions, compare_codes, encode_source
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.measure import SetFeatures, check_enough, measure_set
from aimamba.evaluation.metrics import TrainingNeighbours
from aimamba.evaluation.neighbours import Nearest, copying, nearest
from aimamba.evaluation.sources import ModelSource, Source
from aimamba.sharing import ALONE, Sharing

_SHOWN_NEIGHBOURS = 5


class CopySearch(NamedTuple):
    """What the search found.

    Attributes:
        neighbours: The metrics.
        nearest: The five nearest training images of every sample.
        held_out_similarities: Cosine of each reference image with its nearest training image, (m,).
    """

    neighbours: TrainingNeighbours
    nearest: Nearest
    held_out_similarities: Tensor


def check_search(reference: Source, train: Source) -> None:
    """Check that there are images to search and to compare with.

    Raises:
        DataError: The reference or the training set has no images, or too few.
    """
    for source in (reference, train):
        if source.size:
            check_enough(source)
        else:
            raise DataError(
                f"{source.name}: the search for copies needs its images, and it holds statistics alone; "
                "give a set with images, or --train none"
            )


def search_copies(
    samples: Source,
    generated: SetFeatures,
    reference: Source,
    real: SetFeatures,
    train: Source,
    extractor: Extractor,
    *,
    device: torch.device,
    progress: bool = False,
    sharing: Sharing = ALONE,
) -> CopySearch | None:
    """Find the nearest training images of samples and of held-out images.

    Args:
        samples: The samples; after they were measured. If a model generates them, training images and held-out images
            are compared by their reconstructions and codes.
        generated: Features of the samples.
        reference: Held-out images.
        real: Their features.
        train: Training images. Features and codes are cached.
        extractor: Computes features.
        device: Where to compare vectors.
        progress: Show bars on stderr.
        sharing: The processes that share the work.

    Returns:
        What the search found; None in all processes but the first.

    Raises:
        DataError: Images of a set do not have the model's size.
    """
    codes: CodeCopying | None = None
    train_shown: Source = train
    if isinstance(samples, ModelSource):
        pipeline = samples.pipeline
        learned_codes = encode_source(train, pipeline, mirrored=True, progress=progress, sharing=sharing)
        unseen_codes = encode_source(reference, pipeline, progress=progress, sharing=sharing)[:, 0]
        place = samples.codes.to(device), unseen_codes.to(device), learned_codes.flatten(0, 1).to(device)
        codes = sharing.in_first(lambda: compare_codes(*place), None)
        train_shown = Reconstructions(train, learned_codes[:, 0], pipeline)
        shown = Reconstructions(reference, unseen_codes, pipeline)
        real = measure_set(shown, extractor, keep=True, progress=progress, sharing=sharing)
    measured = measure_set(train_shown, extractor, keep=True, progress=progress, sharing=sharing)

    def search() -> CopySearch:
        learned = measured.vectors.to(device)
        near = nearest(generated.vectors.to(device), learned, min(_SHOWN_NEIGHBOURS, len(learned)))
        held_out = nearest(real.vectors.to(device), learned, 1).similarities[:, 0]
        found = TrainingNeighbours(
            train=train.name,
            copying=copying(near.similarities[:, 0], held_out),
            compared="originals" if codes is None else "reconstructions",
            codes=codes,
        )
        return CopySearch(found, near, held_out)

    return sharing.in_first(search, None)
