"""Whether images show what their captions mention: attribute by attribute, and all of a caption at once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aimamba.errors import DataError

KIND = "style"
"""The attribute that says what is shown at all. A caption always mentions it, and it is easy, so it counts for
``binding`` and not for ``accuracy``."""


class AttributeAccuracy(NamedTuple):
    """How often images show what their captions mention.

    Attributes:
        accuracy: Share of the mentioned values that are seen, over all images and all attributes but ``KIND``.
        binding: Share of the images on which all that is mentioned is seen at once, ``KIND`` included.
        by_attribute: Share of the mentioned values that are seen, for each attribute.
        images: Number of images.
    """

    accuracy: float
    binding: float
    by_attribute: dict[str, float]
    images: int


def attribute_accuracy(seen: Sequence[Mapping[str, str]], mentioned: Sequence[Mapping[str, str]]) -> AttributeAccuracy:
    """Compare what is seen on images with what their captions mention.

    Args:
        seen: Name and value of the attributes of every image, by whatever reads them.
        mentioned: Those that the caption of every image mentions; others do not count.

    Raises:
        DataError: There are no images, or no caption mentions an attribute.
    """
    asked, right, bound = Counter[str](), Counter[str](), 0
    for found, wanted in zip(seen, mentioned, strict=True):
        hits = [name for name, value in wanted.items() if found.get(name) == value]
        asked.update(wanted.keys())
        right.update(hits)
        bound += len(hits) == len(wanted)
    counted = asked.total() - asked[KIND]
    if not counted:
        raise DataError("the captions mention no attributes, so none can be compared")
    return AttributeAccuracy(
        accuracy=(right.total() - right[KIND]) / counted,
        binding=bound / len(mentioned),
        by_attribute={name: right[name] / count for name, count in sorted(asked.items())},
        images=len(mentioned),
    )
