"""A set of images with captions as an evaluation of text takes it: captions to draw, what they mention, look-alikes."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from aimamba.data.captioned import CaptionedAvatars
from aimamba.data.emoji import SPLITS as EMOJI_SPLITS
from aimamba.data.emoji import EmojiImages
from aimamba.data.images import Images
from aimamba.data.spec import parse_spec
from aimamba.errors import DataError, counted
from aimamba.evaluation.sources import Source

_HELD_OUT = {
    "captioned-avatars": ("held-out", "held-out-pairs"),
    "emoji": ("held-out", "held-out-names"),
}


class Caption(NamedTuple):
    """A caption of an image.

    Attributes:
        image: Index of the image.
        text: The caption.
        mentions: Name and value of the attributes that it mentions; None where that is not known.
    """

    image: int
    text: str
    mentions: dict[str, str] | None = None


class Gallery(NamedTuple):
    """Real images among which samples look for what they show.

    Attributes:
        images: The images.
        subjects: What each one shows: a number for each thing that can be told apart, (m,).
        designs: How it is drawn, where the same thing is drawn in several designs, (m,).
    """

    images: Source
    subjects: Int[Tensor, " m"]
    designs: Int[Tensor, " m"] | None = None


class CaptionedImages:
    """A set of images with captions; images without one are left out.

    Attributes:
        images: All images of the set.
        chosen: Indices of those with captions, in an order drawn once.
    """

    def __init__(self, images: Images) -> None:
        """Look for captions.

        Raises:
            DataError: Fewer than two images have captions.
        """
        self.images = images
        chosen = [index for index in range(len(images)) if images.captioned and images.captions(index)]
        if len(chosen) < 2:
            raise DataError(
                f"{images.name}: {counted(len(chosen), 'image')} with captions, and at least 2 are needed; give a set "
                "with captions: captioned-avatars, emoji, or a folder with a text beside each image (docs/captions.md)"
            )
        self.chosen = np.random.default_rng(0).permutation(chosen).tolist()

    def captions(self, count: int) -> list[Caption]:
        """Return captions to draw: of the images in turn, and of each of them its captions in turn."""
        images = len(self.chosen)
        return [self.caption(self.chosen[place % images], place // images + place % images) for place in range(count)]

    def own(self) -> list[Caption]:
        """Return a caption of each image, of the next its next one."""
        return [self.caption(index, place) for place, index in enumerate(self.chosen)]

    def caption(self, image: int, number: int = 0) -> Caption:
        """Return a caption of an image; ``number`` counts on from the first when it is past the last."""
        texts = self.images.captions(image)
        number %= len(texts)
        mentions = self.images.mentions(image)[number] if isinstance(self.images, CaptionedAvatars) else None
        return Caption(image, texts[number], mentions)

    def distinct(self, count: int) -> list[Caption]:
        """Return the first captions of images that show different things and have different captions."""
        found: dict[object, Caption] = {}
        texts = set()
        for image in self.chosen:
            caption = self.caption(image)
            if caption.text not in texts and (subject := self._subject(image)) not in found:
                texts.add(caption.text)
                found[subject] = caption
            if len(found) == count:
                break
        return list(found.values())

    @cached_property
    def subjects(self) -> Int64[np.ndarray, " n"]:
        """What each image shows, as a number; of emoji, variants of a skin tone, sex or direction show the same."""
        return np.unique([self._subject(index) for index in range(len(self.images))], return_inverse=True)[1]

    def gallery(self) -> Gallery:
        """Return real images of what the images show: they themselves; of emoji also those in other designs."""
        if not isinstance(self.images, EmojiImages):
            return Gallery(self.images, torch.from_numpy(self.subjects))
        numbers = {self._subject(index): int(number) for index, number in enumerate(self.subjects)}
        parts: list[tuple[Images, list[int]]] = []
        subjects: list[int] = []
        designs: list[int] = []
        for name in EMOJI_SPLITS:
            all_of_split = EmojiImages(self.images.size, name, designs=self.images.class_names)
            chosen = [index for index, emoji in enumerate(all_of_split.emoji) if emoji.concept in numbers]
            parts.append((all_of_split, chosen))
            subjects += [numbers[all_of_split.emoji[index].concept] for index in chosen]
            designs += all_of_split.labels[chosen].tolist()
        pictures = _Chosen(f"pictures like those of {self.images.name}", parts)
        return Gallery(pictures, torch.tensor(subjects), torch.tensor(designs))

    def _subject(self, index: int) -> str | int:
        return self.images.emoji[index].concept if isinstance(self.images, EmojiImages) else index


def split_names(source: str) -> tuple[str, ...]:
    """Return the sets that the name of a set stands for: without a split, all that a named set holds out.

    Raises:
        DataError: There is no such set.
    """
    spec = parse_spec(source)
    return tuple(f"{source}:{name}" for name in _HELD_OUT.get(spec.kind, ())) if spec.split is None else ()


class _Chosen(Images):
    """Some images of several sets."""

    def __init__(self, name: str, parts: Sequence[tuple[Images, list[int]]]) -> None:
        self.name, self.size = name, parts[0][0].size
        self.class_names, self.labels = (), None
        self._places = [(images, index) for images, chosen in parts for index in chosen]
        self._about = [[images.identity, chosen] for images, chosen in parts]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def identity(self) -> dict[str, Any]:
        """Those of the sets, and which images are chosen."""
        return {"chosen": self._about}

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return one image."""
        images, place = self._places[index]
        return images.image(place, rng)
