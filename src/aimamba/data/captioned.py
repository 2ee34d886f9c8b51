"""Avatars with captions: images whose attributes are known exactly, and pairs of attributes that are held out."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from tqdm import tqdm

from aimamba.config import check
from aimamba.data.avatar_captions import attributes_of, captions_of, is_held_out, mentions_of, options_of
from aimamba.data.avatar_words import STYLES
from aimamba.data.avatars import AVATARS_PER_CLASS, MOST_PER_CLASS, PACKAGES, Avatars
from aimamba.data.drawing import load_style
from aimamba.data.images import Images
from aimamba.data.splits import Split
from aimamba.documents import DocumentError, read_json
from aimamba.errors import DataError, suggest
from aimamba.files import cache_folder, expand_home, write_atomically

SPLITS = ("train", "held-out", "held-out-pairs")
_MOST_TRIED = 50  # avatars for each one that is asked for


class CaptionedAvatars(Images):
    """Avatars of some styles with four captions each; each style is a class.

    The images are those of ``Avatars``. Of ``"train"`` and ``"held-out"`` those are left out that have a held-out pair
    of values, such as a purple critter with one eye; ``"held-out-pairs"`` has these alone, with the seeds of
    ``"held-out"``. Every value of every attribute is trained on.

    Attributes:
        class_names: The styles; a label is an index into them.
        labels: Class index of every image, (n,) int64.
        size: Side of the images in pixels.
    """

    captioned = True

    def __init__(
        self,
        size: int = 64,
        split: Split = "train",
        per_class: int | None = None,
        styles: Sequence[str] = tuple(STYLES),
        *,
        flip: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
        name: str | None = None,
    ) -> None:
        """Find out what the avatars look like, and draw them, or load both from the cache.

        Args:
            size: Side in pixels, 8 to 4096.
            split: ``"train"``, ``"held-out"`` or ``"held-out-pairs"``.
            per_class: Images of each style; by default those among the first 3,000 avatars to train on, or among the
                first 500 held-out ones.
            styles: Which of ``avatar_words.STYLES``, in the order of their labels.
            flip: As of ``Avatars``, like the following.
            cache_dir: Where to keep images and attributes.
            progress: Show a bar on stderr while drawing.
            name: The name that the user gave the set; by default as ``captioned-avatars-64:train``.

        Raises:
            ConfigError: A number is out of range, or the split is unknown.
            DataError: A style has no captions, or is named twice.
        """
        check(split in SPLITS, f"captioned avatars have no split {split!r}; use one of {', '.join(SPLITS)}")
        check(
            per_class is None or 1 <= per_class <= MOST_PER_CLASS,
            f"per_class must be from 1 to {MOST_PER_CLASS:,}, got {per_class}",
        )
        for style in styles:
            if style not in STYLES:
                near = suggest(style, STYLES)
                raise DataError(f"avatars of the style {style!r} have no captions{near}; {', '.join(STYLES)} have")
        seeds: Split = "train" if split == "train" else "held-out"
        folder = cache_folder() / "avatars" if cache_dir is None else expand_home(cache_dir)
        chosen = [
            _choose(_Parts(folder, style, seeds, progress), split == "held-out-pairs", per_class, seeds)
            for style in styles
        ]
        drawn = max((max(part) + 1 for part in chosen if part), default=1)
        self._avatars = Avatars(size, seeds, drawn, styles, flip=flip, cache_dir=folder, progress=progress)
        self.name = f"captioned-avatars-{size}:{split}" if name is None else name
        self.size = size
        self.class_names = self._avatars.class_names
        self.labels: Int64[np.ndarray, "n"] = np.repeat(np.arange(len(styles)), [len(part) for part in chosen])
        self._seeds = seeds
        self._numbers = [number for part in chosen for number in part]
        self._attributes = [attributes for part in chosen for attributes in part.values()]
        self._places = [label * drawn + number for label, part in enumerate(chosen) for number in part]
        self._about = [size, split, per_class, *styles]
        if not self._numbers:
            raise DataError(f"{self.name}: there is no such avatar; ask for more of each style")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._places)

    @property
    def identity(self) -> dict[str, Any]:
        """Size, split, number and styles, and the versions of the packages that draw."""
        return {"captioned avatars": self._about, **{package: version(package) for package in PACKAGES}}

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return one image, see ``Avatars.image``.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        return self._avatars.image(self._places[index], rng)

    def attributes(self, index: int) -> Mapping[str, str]:
        """Return what can be seen on an image: the style, and name and value of its attributes.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        return {"style": self.class_names[self.labels[index]], **self._attributes[index]}

    def captions(self, index: int) -> tuple[str, ...]:
        """Return four captions of an image, see ``avatar_captions.captions_of``.

        Raises:
            IndexError: ``index`` is out of range.
        """
        return captions_of(*self._described(index))

    def mentions(self, index: int) -> tuple[dict[str, str], ...]:
        """Return what each of the captions of an image mentions: the style, and name and value of some attributes.

        Raises:
            IndexError: ``index`` is out of range.
        """
        style, attributes, key = self._described(index)
        return tuple({"style": style, **some} for some in mentions_of(style, attributes, key))

    def _described(self, index: int) -> tuple[str, Mapping[str, str], str]:
        """Return style and attributes of an image, and the key that its captions depend on."""
        self._check(index)
        style = self.class_names[self.labels[index]]
        return style, self._attributes[index], f"{self._seeds}/{self._numbers[index]}"


class _Parts:
    """The options of the avatars of a style and a split that decide their attributes, found out once and kept."""

    def __init__(self, folder: Path, style: str, split: str, progress: bool) -> None:
        self.style, self._split, self._progress = style, split, progress
        versions = "-".join(version(package) for package in PACKAGES[:2])
        self._path = folder / f"{style}-{split}-parts-{versions}.json"
        self._known = self._read()

    def first(self, count: int) -> list[dict[str, str]]:
        """Return the options of the first avatars."""
        if count > len(self._known):
            self._extend(count)
        return self._known[:count]

    def _read(self) -> list[dict[str, str]]:
        try:
            return [attributes_of(self.style, options) and options for options in read_json(self._path)]
        except (OSError, DocumentError, TypeError, AttributeError, KeyError, ValueError):
            return []  # not kept yet, or damaged

    def _extend(self, count: int) -> None:
        import dicebear  # noqa: PLC0415 - what is known already does not need it

        style = load_style(self.style)
        missing = range(len(self._known), count)
        for number in tqdm(missing, desc=f"looking at {self.style}", unit="image", disable=not self._progress):
            avatar = dicebear.Avatar(style, {"seed": f"{self.style}-{self._split}-{number}", "size": 64})
            self._known.append(options_of(self.style, avatar.to_json()["options"]))
        text = json.dumps(self._known, separators=(",", ":"))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, lambda draft: draft.write_text(text, "utf-8"))
        except OSError:
            return  # ``Avatars`` warns of the same folder


def _choose(parts: _Parts, wanted: bool, per_class: int | None, split: Split) -> dict[int, dict[str, str]]:
    """Return number and attributes of the avatars that have a held-out pair, or of those that have none.

    Raises:
        DataError: There are not as many.
    """
    tried = AVATARS_PER_CLASS[split]
    while True:
        found = {}
        for number, options in enumerate(parts.first(tried)):
            attributes = attributes_of(parts.style, options)
            if is_held_out(parts.style, attributes) == wanted:
                found[number] = attributes
            if len(found) == per_class:
                return found
        if per_class is None:
            return found
        if tried > _MOST_TRIED * per_class:
            raise DataError(
                f"among the first {tried:,} {parts.style} only {len(found)} are of this kind; ask for fewer"
            )
        tried *= 2
