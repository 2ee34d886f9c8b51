"""Emoji in three designs: some ten thousand pictures with names, from packages of npm under permissive licences.

A design is a class. The packages are downloaded on first use and read where they are; the pictures are drawn or scaled
once for each size and kept on disk.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from tqdm import tqdm

from aimamba.config import check
from aimamba.data.cache import KeptImages, load_images, store_images, warn_not_kept
from aimamba.data.emoji_names import NAMES_PACKAGE, Emoji, captions_of, choose_sides, plain_code, read_names
from aimamba.data.npm import Package, find_packages, read_members
from aimamba.data.splits import Split, first_of_each
from aimamba.data.transforms import center_crop, to_array, to_rgb
from aimamba.errors import DataError, suggest
from aimamba.files import cache_folder, expand_home

DESIGNS = {
    "noto": Package(
        name="@iconify-json/noto",
        version="1.2.9",
        size=3_102_958,
        sha512="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        licence="Apache-2.0",
    ),
    "fluent-flat": Package(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        size=1_172_438,
        sha512="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        licence="MIT",
    ),
    "fluent-3d": Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        size=15_792_027,
        sha512="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        licence="MIT",
    ),
}
"""Designs and their packages, in the order of their labels."""

FOLDER = "emoji"
"""Name of the folder of packages and pictures."""

SPLITS: tuple[Split, ...] = ("train", "held-out", "held-out-names")
_SMALLEST, _LARGEST = 8, 256  # pixels; those of fluent-3d have 256
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" height="{size}" '
    'viewBox="{left} {top} {width} {height}">{body}</svg>'
)


class EmojiImages(KeptImages):
    """Emoji in several designs on a white background; each design is a class.

    ``"train"`` has the pictures to train on. Of the names in ``"held-out"`` only other designs are trained on; of those
    in ``"held-out-names"``, none is (see ``emoji_names.choose_sides``). Which picture is on which side depends on the
    packages alone, not on the designs that are chosen. Pixels depend on ``size`` and on the versions of the packages,
    of ``resvg-py`` and, for ``fluent-3d``, of Pillow. Images are ordered by design, then by code.

    Attributes:
        class_names: The designs; a label is an index into them.
        labels: Class index of every image, (n,) int64.
        names: Design and code of every image, as ``noto/1f680``.
        emoji: Name and keywords of every image.
        size: Side of the images in pixels.
    """

    captioned = True

    def __init__(
        self,
        size: int = 32,
        split: Split = "train",
        per_class: int | None = None,
        designs: Sequence[str] = tuple(DESIGNS),
        *,
        variants: int | None = None,
        flip: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
        name: str | None = None,
    ) -> None:
        """Find the packages and draw the pictures, or load them from the cache.

        Args:
            size: Side in pixels, 8 to 256.
            split: ``"train"``, ``"held-out"`` or ``"held-out-names"``; there is no ``"all"``.
            per_class: Take at most this many pictures of each design (a fixed choice by hash).
            designs: Which designs, in the order of their labels.
            variants: Take at most this many pictures of one concept in each design (a fixed choice by hash). More than
                half of all pictures are people and hands in other skin tones, sexes and directions.
            flip: Mirror a random view half of the time. Off by default: many emoji hold letters, or point somewhere.
            cache_dir: Where to keep the pictures; by default ``emoji`` in ``cache_folder()``. If it cannot be written,
                they are kept in memory, with a warning.
            progress: Tell of downloads, and show a bar while drawing, on stderr.
            name: The name that the user gave the set; by default as ``emoji-64:train``.

        Raises:
            ConfigError: A number is out of range, or the split is unknown.
            DataError: A design is unknown or named twice, or a package is missing and cannot be downloaded.
        """
        check(_SMALLEST <= size <= _LARGEST, f"size must be {_SMALLEST} to {_LARGEST} pixels for emoji, got {size}")
        check(split in SPLITS, f"emoji have no split {split!r}; use one of {', '.join(SPLITS)}")
        check(per_class is None or per_class >= 1, f"per_class must be at least 1, got {per_class}")
        check(variants is None or variants >= 1, f"variants must be at least 1, got {variants}")
        _check_designs(designs)
        self.name = f"emoji-{size}:{split}" if name is None else name
        self.size = size
        self.class_names = tuple(designs)
        names_file, *files = find_packages([NAMES_PACKAGE, *DESIGNS.values()], FOLDER, progress=progress)
        emoji = read_names(names_file)
        paths = dict(zip(DESIGNS, files, strict=True))
        codes = {design: sorted(set(_codes(design, path)) & emoji.keys()) for design, path in paths.items()}
        sides = choose_sides(emoji, codes)
        known = [(label, design, code) for label, design in enumerate(designs) for code in codes[design]]
        names = [f"{design}/{code}" for _, design, code in known]
        chosen = [place for place, (_, *picture) in enumerate(known) if sides[picture[0], picture[1]] == split]
        if variants is not None:
            concepts = [(label, emoji[code].concept) for label, _, code in known]
            chosen = first_of_each(chosen, names, concepts, variants)
        if per_class is not None:
            chosen = first_of_each(chosen, names, [label for label, *_ in known], per_class)
        if not chosen:
            raise DataError(f"{self.name}: there is no such picture in these designs; take more of them")
        self.names = tuple(names[place] for place in chosen)
        self.emoji: tuple[Emoji, ...] = tuple(emoji[known[place][2]] for place in chosen)
        self.labels: Int64[np.ndarray, "n"] = np.array([known[place][0] for place in chosen], np.int64)
        self._rows = [codes[known[place][1]].index(known[place][2]) for place in chosen]
        self._about = [size, split, per_class, *([] if variants is None else [f"variants {variants}"]), *designs]
        self._flip = flip
        folder = cache_folder() / FOLDER if cache_dir is None else expand_home(cache_dir)
        self._drawn = [_open(folder, design, paths[design], codes[design], size, progress) for design in designs]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @property
    def identity(self) -> dict[str, Any]:
        """Size, split, number and designs, and the versions of what draws."""
        return {"emoji": self._about, "made by": [_made_by(design) for design in self.class_names]}

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return one image.

        Args:
            index: Which one, in [0, n).
            rng: Chooses whether the image is mirrored, if ``flip`` is set; not used otherwise.

        Returns:
            RGB image, (size, size, 3) uint8.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        return self._kept(int(self.labels[index]), self._rows[index], rng)

    def attributes(self, index: int) -> Mapping[str, str]:
        """Return the name and the design of an image.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        return {"name": self.emoji[index].label, "design": self.class_names[self.labels[index]]}

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of an image, see ``emoji_names.captions_of``.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        return captions_of(self.emoji[index], self.class_names[self.labels[index]])


def _check_designs(designs: Sequence[str]) -> None:
    listed = ", ".join(DESIGNS)
    for design in designs:
        if design not in DESIGNS:
            raise DataError(f"there is no design of emoji {design!r}{suggest(design, DESIGNS)}; there are {listed}")
    if not designs:
        raise DataError(f"no design of emoji is named; leave the colon out for all of {listed}")
    if len(set(designs)) < len(designs):
        raise DataError(f"a design of emoji is named twice in {', '.join(designs)}; name each once")


def _codes(design: str, path: Path) -> list[str]:
    """Return the codes of the pictures in the package of a design."""
    if design == "fluent-3d":
        return [plain_code(Path(name).stem) for name, _ in read_members(path, suffix=".webp")]
    return [plain_code(code) for code in _json(path, "chars.json")]


def _pictures(design: str, path: Path, size: int) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
    """Yield the code of every picture in the package of a design, and a function that draws it."""
    if design == "fluent-3d":
        for name, content in read_members(path, suffix=".webp"):
            yield plain_code(Path(name).stem), partial(_scaled, content, size)
        return
    icons = _json(path, "icons.json")
    for code, icon in _json(path, "chars.json").items():
        yield plain_code(code), partial(_drawn, icons, icons["icons"][icon], size)


def _scaled(content: bytes, size: int) -> Image.Image:
    return center_crop(to_rgb(Image.open(io.BytesIO(content), formats=("WEBP",))), size)


def _drawn(icons: Mapping[str, Any], icon: Mapping[str, Any], size: int) -> Image.Image:
    """Draw an icon of Iconify's; what it does not say is said by its set."""
    import resvg_py  # noqa: PLC0415 - cached images do not need it

    box = {side: icon.get(side, icons.get(side, 0)) for side in ("left", "top", "width", "height")}
    svg = _SVG.format(size=size, body=icon["body"], **box)
    return to_rgb(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg))))


def _json(path: Path, name: str) -> dict[str, Any]:
    for _, content in read_members(path, [name]):
        return json.loads(content)
    raise DataError(f"{path}: there is no {name} in it; remove the file to have it downloaded again")


def _made_by(design: str) -> str:
    drawing = f"pillow{version('pillow')}" if design == "fluent-3d" else f"resvg{version('resvg-py')}"
    return f"{design}-{DESIGNS[design].version}-{drawing}"


def _open(
    folder: Path, design: str, package: Path, codes: Sequence[str], size: int, progress: bool
) -> UInt8[np.ndarray, "n s s 3"]:
    """Map the pictures of a design into memory, in the order of ``codes``; draw them if they are not kept yet."""
    path = folder / f"{size}px-{_made_by(design)}.npy"
    stored = load_images(path, size)
    if stored is not None and len(stored) == len(codes):
        return stored
    images, rows = np.empty((len(codes), size, size, 3), np.uint8), {code: row for row, code in enumerate(codes)}
    with tqdm(total=len(codes), desc=f"drawing emoji, {design}", unit="image", disable=not progress) as bar:
        for code, draw in _pictures(design, package, size):
            if (row := rows.pop(code, None)) is not None:  # some are in a package twice
                images[row] = to_array(draw())
                bar.update()
    try:
        return store_images(path, images)
    except OSError as error:
        warn_not_kept(folder, "emoji", error)
        return images
