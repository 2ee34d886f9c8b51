"""Open a set of images by its name; see ``aimamba.data.spec`` for the names."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from aimamba.config import check
from aimamba.data.avatar_words import STYLES as CAPTIONED_STYLES
from aimamba.data.avatars import STYLES, Avatars
from aimamba.data.captioned import CaptionedAvatars
from aimamba.data.emoji import DESIGNS, EmojiImages
from aimamba.data.fashion_mnist import FashionMNIST
from aimamba.data.files import describe_left_out
from aimamba.data.folder import Crop, ImageFolder
from aimamba.data.image_files import ImageFiles
from aimamba.data.images import Images, ImageSet
from aimamba.data.npz import NpzImages
from aimamba.data.spec import NAMES, ImageSpec, parse_spec
from aimamba.data.splits import Split
from aimamba.data.webdataset import TarImages
from aimamba.errors import DataError, counted, printable

__all__ = ["ImageSet", "Images", "Splits", "open_images", "open_source", "open_splits"]


def open_images(
    source: str,
    *,
    size: int | None = None,
    split: Split,
    crop: Crop = "center",
    flip: bool = False,
    per_class: int | None = None,
    skip_per_class: int = 0,
    variants: int | None = None,
    upscale: bool = False,
    max_broken: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> ImageSet:
    """Open one split of a set of labelled images, to train on or to encode.

    Args:
        source: Name of the set, see ``aimamba.data.spec``; without a split, and not an ``.npz`` file. A folder needs a
            sub-folder for each class.
        size: Side of the images in pixels; may be left out where the name has it, and for Fashion-MNIST.
        split: ``"train"`` or ``"held-out"``; a folder also has ``"all"``.
        crop: Area of a random view of an image from a folder; images of named sets are always shown whole.
        flip: Mirror a random view half of the time.
        per_class: Take at most this many images of each class; by default all, and of the avatars 3,000 to train on or
            500 held out.
        skip_per_class: How many avatars of each class to skip first.
        variants: Of emoji: take at most this many variants of one thing (skin tone, sex, direction) in each design.
        upscale: Enlarge a folder's images that are smaller than ``size`` instead of refusing them.
        max_broken: How many broken files of a folder to skip; by default 1 %, but at least 10.
        strict: Raise an error for a folder's first broken file instead of skipping it with a warning.
        progress: Show a bar on stderr while avatars are drawn for the first time.

    Raises:
        ConfigError: A setting is out of range.
        DataError: The name has a split, there is no such set, or it cannot be used for training.
    """
    spec = parse_spec(source)
    if spec.split is not None:
        raise DataError(
            f"{source}: training and encoding choose the split themselves; "
            f"leave out ':{spec.split}' and what follows (--per-class or data.per_class limits the number of images)"
        )
    if spec.kind != "avatars":
        check(skip_per_class == 0, f"skip_per_class is for avatars alone, got {skip_per_class} for {source}")
    if spec.kind != "emoji":
        check(variants is None, f"variants is for emoji alone, got {variants} for {source}")
    if spec.kind in NAMES:
        side = _side(spec, size)
        return _named(
            spec, side, split, per_class, skip=skip_per_class, variants=variants, flip=flip, progress=progress
        )
    assert spec.path is not None
    if spec.kind not in ("folder", "tars"):
        raise DataError(
            f"{source}: this is a file, but training and encoding need a folder with a sub-folder for each class, "
            "or a named set such as avatars"
        )
    if size is None:
        raise DataError(f"{source}: the size of the images is missing; give it in pixels (--size or data.size)")
    return (ImageFolder if spec.kind == "folder" else TarImages)(
        spec.path,
        size=size,
        split=split,
        crop=crop,
        flip=flip,
        classes=spec.which,
        per_class=per_class,
        upscale=upscale,
        max_broken=max_broken,
        strict=strict,
    )


class Splits(NamedTuple):
    """The two parts of a set of labelled images."""

    train: ImageSet
    held_out: ImageSet


def open_splits(
    source: str,
    *,
    size: int | None = None,
    crop: Crop = "center",
    flip: bool = False,
    per_class: int | None = None,
    held_out_per_class: int | None = None,
    skip_per_class: int = 0,
    variants: int | None = None,
    upscale: bool = False,
    max_broken: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Splits:
    """Open the images to train on, and the held-out ones in their centre view.

    Args:
        source: Name of the set, see ``open_images``.
        size: Side of the images in pixels.
        crop: Area of a random view of a training image from a folder.
        flip: Mirror a random view of a training image half of the time.
        per_class: Take at most this many training images of each class.
        held_out_per_class: Take at most this many held-out images of each class.
        skip_per_class: How many training avatars of each class to skip first.
        variants: As in ``open_images``, of both parts.
        upscale: As in ``open_images``, like the following; applied to each split.
        max_broken: As in ``open_images``.
        strict: As in ``open_images``.
        progress: As in ``open_images``; also print a line on stderr that says what a folder holds.

    Raises:
        ConfigError: A setting is out of range.
        DataError: There is no such set, or it cannot be used for training.
    """
    train = open_images(
        source,
        size=size,
        split="train",
        crop=crop,
        flip=flip,
        per_class=per_class,
        skip_per_class=skip_per_class,
        variants=variants,
        upscale=upscale,
        max_broken=max_broken,
        strict=strict,
        progress=progress,
    )
    held_out = open_images(
        source,
        size=size,
        split="held-out",
        per_class=held_out_per_class,
        variants=variants,
        upscale=upscale,
        max_broken=max_broken,
        strict=strict,
        progress=progress,
    )
    if progress and isinstance(train, ImageFolder) and isinstance(held_out, ImageFolder):
        left_out = train.left_out + Counter(broken=held_out.left_out["broken"])
        _tell(f"{source}: {len(train):,} to train on, {len(held_out):,} held out", train.class_names, left_out)
    return Splits(train, held_out)


def open_source(
    source: str,
    *,
    size: int | None = None,
    default_size: int | None = None,
    skip_broken: bool | None = None,
    progress: bool = False,
) -> Images:
    """Open a set of images to measure or to show.

    Args:
        source: Name of the set, see ``aimamba.data.spec``. Without a split, the held-out images of a named set and all
            images of a folder.
        size: Side in pixels: of avatars, and to which a folder's images are cropped and scaled. An ``.npz`` file and a
            name with a size must agree with it.
        default_size: The side where neither ``size`` nor the name has one.
        skip_broken: Leave out files of a folder that cannot be read, see ``ImageFiles``.
        progress: Show a bar on stderr while avatars are drawn for the first time, and a line on what a folder holds.

    Raises:
        ConfigError: The size is below 1.
        DataError: There is no such set, it cannot be read, or its size is unknown or another one.
    """
    check(size is None or size >= 1, f"--size must be at least 1 pixel, got {size}")
    spec = parse_spec(source)
    split = spec.split or ("all" if spec.kind in ("folder", "tars") else "held-out")
    if spec.kind in NAMES:
        side = _side(spec, size, default_size)
        return _named(spec, side, split, spec.per_class, progress=progress, name=source)
    assert spec.path is not None
    if spec.kind == "folder":
        pixels = spec.resolve_size(size, default=default_size)
        files = ImageFiles(
            spec.path,
            split,
            size=pixels,
            classes=spec.which,
            per_class=spec.per_class,
            name=source,
            skip_broken=skip_broken,
            progress=progress,
        )
        if progress:
            _tell(f"{source}: {counted(len(files), 'image')}", files.class_names, files.left_out)
        return files
    if spec.kind == "tars":
        pixels = spec.resolve_size(size, default=default_size)
        if pixels is None:
            raise DataError(f"{source}: the size of the images is missing; give --size")
        strict = skip_broken is not True
        return TarImages(
            spec.path,
            size=pixels,
            split=split,
            classes=spec.which,
            per_class=spec.per_class,
            strict=strict,
            name=source,
        )
    if spec.kind == "file":
        raise DataError(f"{source}: expected a folder of images, an .npz file or a named set such as avatars-64:train")
    images = NpzImages(spec.path, name=source)
    if size is not None and len(images) and images.size != size:
        raise DataError(
            f"{source}: its images are {images.size} x {images.size} pixels and are not scaled, but the size is set to "
            f"{size}; leave --size out"
        )
    return images


def _tell(what: str, class_names: Sequence[str], left_out: Counter[str]) -> None:
    """Print in one line what a folder holds, and what was left out of it."""
    classes = f"{len(class_names):,} class{'es' if len(class_names) != 1 else ''}" if class_names else "no classes"
    line = ", ".join(part for part in (what, classes, describe_left_out(left_out)) if part)
    print(printable(line), file=sys.stderr)


def _named(
    spec: ImageSpec,
    side: int,
    split: Split,
    per_class: int | None,
    *,
    skip: int = 0,
    variants: int | None = None,
    flip: bool = False,
    progress: bool = False,
    name: str | None = None,
) -> Avatars | CaptionedAvatars | EmojiImages | FashionMNIST:
    """Open one split of a set that has a name."""
    if spec.kind == "fashion-mnist":
        return FashionMNIST(spec.path, size=side, split=split, per_class=per_class, flip=flip, name=name)
    if spec.kind == "emoji":
        designs = tuple(DESIGNS) if spec.which is None else spec.which
        return EmojiImages(side, split, per_class, designs, variants=variants, flip=flip, progress=progress, name=name)
    if spec.kind == "captioned-avatars":
        styles = tuple(CAPTIONED_STYLES) if spec.which is None else spec.which
        return CaptionedAvatars(side, split, per_class, styles, flip=flip, progress=progress, name=name)
    styles = STYLES if spec.which is None else spec.which
    return Avatars(side, split, per_class, styles, skip=skip, flip=flip, progress=progress, name=name)


def _side(spec: ImageSpec, size: int | None, default: int | None = None) -> int:
    side = spec.resolve_size(size, default=default)
    if side is None:
        named = spec.text.replace(spec.kind, f"{spec.kind}-64", 1)
        raise DataError(
            f"{spec.text}: the size of the images is missing; write it in the name, as in {named}, or give --size"
        )
    return side
