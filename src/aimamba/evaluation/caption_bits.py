"""How likely real images are under their own captions, under those of others and under none.

Shape letters: B images, L tokens of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from aimamba.generation.plan import Labels
from aimamba.pipeline import Pipeline, Prompt
from aimamba.pipeline.prompts import Class


class CaptionBits(NamedTuple):
    """Bits a token of real images, without their class.

    Attributes:
        right: Under their own captions.
        wrong: Under the caption of another image.
        none: Without a caption.
        images: Number of images.
    """

    right: float
    wrong: float
    none: float
    images: int


def caption_bits(
    pipeline: Pipeline,
    codes: Int[Tensor, "b l"],
    right: Sequence[Class],
    wrong: Sequence[Class],
    *,
    progress: bool = False,
) -> CaptionBits:
    """Measure bits a token; ``right`` are the prompts or classes of the images, ``wrong`` those of others."""
    given = [pipeline.labels(right), pipeline.labels(wrong), pipeline.labels_of(None, len(codes))]
    with tqdm(total=3 * len(codes), desc="bits with captions", unit="image", disable=not progress) as bar:
        own, anothers, none = (_bits(pipeline, codes, labels, bar) for labels in given)
    return CaptionBits(own, anothers, none, images=len(codes))


def caption_likelihoods(
    pipeline: Pipeline, codes: Int[Tensor, "b l"], captions: Sequence[str], *, progress: bool = False
) -> Float[Tensor, "b c"]:
    """Return the logarithm of the probability of every image under every caption."""
    given, device = pipeline.labels([Prompt.of_caption(text) for text in captions]), pipeline.tokenizer.device
    rows = tqdm(codes.long().to(device), desc="images among captions", unit="image", disable=not progress)
    return torch.cat([pipeline.log_likelihoods(row[None], given=given).cpu() for row in rows])


def _bits(pipeline: Pipeline, codes: Int[Tensor, "b l"], labels: Labels, bar: "tqdm[object]") -> float:
    total, at_once = 0.0, 64
    for some, given in zip(torch.split(codes.long(), at_once), torch.split(labels, at_once), strict=True):
        total += float(pipeline.bits(some, given).double().mean(dim=1).sum())
        bar.update(len(some))
    return total / len(codes)
