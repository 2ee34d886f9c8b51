"""Encode images into codes, for a generator to train on.

IMAGES names a set of images, see below, without a split: training and held-out images are encoded separately, into
DIR/train and DIR/held-out; held-out images only in the centre view. The same command continues an interrupted
encoding and ends with the same bytes.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser, add_placement, require_positive
from aimamba.data import spec

_DEFAULT_SIZE = 256


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("model", metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id")
    parser.add_argument("images", metavar="IMAGES", help="a set of images with classes, see below")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--size", type=int, help=f"side in pixels (default: as in IMAGES, else {_DEFAULT_SIZE})")
    parser.add_argument("--views", default="center", help="center (default), center-flip or ten-crop")
    parser.add_argument("--per-class", type=int, metavar="N", help="at most this many training images of each class")
    parser.add_argument("--held-out-per-class", type=int, metavar="N", help="the same for held-out images")
    parser.add_argument("--batch-size", type=int, default=32, help="images at once (default 32)")
    parser.add_argument("--upscale", action="store_true", help="enlarge images that are smaller than --size")
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image")
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Encode both splits."""
    from aimamba.cli.output import output_folder, print_line
    from aimamba.config import check
    from aimamba.data.codes import view_names
    from aimamba.data.encoding import encode_splits
    from aimamba.data.sets import open_splits
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.models import VQModel
    from aimamba.train.lock import locked

    require_positive(batch_size=arguments.batch_size)
    view_names(arguments.views)
    size = spec.parse_spec(arguments.images).resolve_size(arguments.size, default=_DEFAULT_SIZE)
    assert size is not None
    require_positive(size=size)
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = output_folder(arguments.out)
    tokenizer = VQModel.from_pretrained(arguments.model, device=device, dtype=dtype)
    factor = tokenizer.config.downsampling
    check(size % factor == 0, f"--size must be a multiple of {factor}, the tokenizer's downsampling; got {size}")
    splits = open_splits(
        arguments.images,
        size=size,
        per_class=arguments.per_class,
        held_out_per_class=arguments.held_out_per_class,
        upscale=arguments.upscale,
        strict=arguments.strict,
        progress=True,
    )
    views, batch_size = arguments.views, arguments.batch_size
    with locked(out):
        metas = encode_splits(tokenizer, splits, out, views=views, batch_size=batch_size, progress=True)
    for split, meta in zip(("train", "held-out"), metas, strict=True):
        print_line(
            f"{out / split}: {meta.pictures} images of {len(meta.class_names)} classes, "
            f"{len(meta.views)} views of {meta.grid[0]} x {meta.grid[1]} codes"
        )
