"""Encode images into codes, for a generator to train on.

IMAGES names a set of images, see below, without a split: training and held-out images are encoded separately, into
DIR/train and DIR/held-out; held-out images only in the centre view. The same command continues an interrupted
encoding and ends with the same bytes.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import Parser, add_placement, require_positive
from aimamba.cli.many import add_devices, add_ray, crew, started
from aimamba.data import spec
from aimamba.errors import counted

if TYPE_CHECKING:
    from aimamba.sharing import Sharing

_DEFAULT_SIZE = 256


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("model", metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id")
    parser.add_argument("images", metavar="IMAGES", help="a set of images with classes, see below")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--size", type=int, help=f"side in pixels (default: as in IMAGES, else {_DEFAULT_SIZE})")
    parser.add_argument(
        "--views", default="center", help="center (default), center-flip, ten-crop, or moved-8: moved a little, 8 times"
    )
    parser.add_argument("--per-class", type=int, metavar="N", help="at most this many training images of each class")
    parser.add_argument("--held-out-per-class", type=int, metavar="N", help="the same for held-out images")
    parser.add_argument("--batch-size", type=int, default=32, help="images at once (default 32)")
    parser.add_argument("--upscale", action="store_true", help="enlarge images that are smaller than --size")
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image")
    add_placement(parser)
    add_devices(parser)
    add_ray(parser)


def run(arguments: argparse.Namespace) -> None:
    """Encode both splits."""
    from aimamba.cli.output import output_folder, require_apart
    from aimamba.data.codes import view_names
    from aimamba.devices import resolve_dtype
    from aimamba.distributed import find_place, one_voice

    if started(arguments):
        return
    with one_voice(find_place()):
        require_positive(batch_size=arguments.batch_size)
        view_names(arguments.views)
        size = spec.parse_spec(arguments.images).resolve_size(arguments.size, default=_DEFAULT_SIZE)
        assert size is not None
        require_positive(size=size)
        resolve_dtype(arguments.dtype)
        out = output_folder(arguments.out)
        require_apart([("--out", out)], spec.paths_of([arguments.images]))
    stopped = f"stopped; the same command goes on with what is finished in {out}"
    try:
        with crew(arguments, f"the same command goes on with what is finished in {out}") as sharing:
            _encode(arguments, size, out, sharing)
    except KeyboardInterrupt as error:
        error.args = error.args or (stopped,)
        raise


def _encode(arguments: argparse.Namespace, size: int, out: Path, sharing: "Sharing") -> None:
    from aimamba.cli.output import print_line
    from aimamba.config import check
    from aimamba.data.encoding import PARTS, encode_splits
    from aimamba.data.sets import open_splits
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.files import remove_drafts
    from aimamba.models import VQModel
    from aimamba.train.lock import locked

    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)

    def load() -> "VQModel":
        tokenizer = VQModel.from_pretrained(arguments.model, device=device, dtype=dtype)
        factor = tokenizer.config.downsampling
        check(size % factor == 0, f"--size must be a multiple of {factor}, the tokenizer's downsampling; got {size}")
        return tokenizer

    tokenizer = sharing.in_turn(load)
    splits = sharing.in_turn(
        lambda: open_splits(
            arguments.images,
            size=size,
            per_class=arguments.per_class,
            held_out_per_class=arguments.held_out_per_class,
            upscale=arguments.upscale,
            strict=arguments.strict,
            progress=sharing.is_first,
        )
    )
    views, batch_size = arguments.views, arguments.batch_size
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(locked(out))
            for folder in (out / "train", out / "held-out"):
                remove_drafts(folder)
                remove_drafts(folder / PARTS)

        sharing.once(begin)
        metas = encode_splits(
            tokenizer, splits, out, views=views, batch_size=batch_size, progress=True, sharing=sharing
        )
    for split, meta in zip(("train", "held-out"), metas, strict=True):
        if sharing.is_first:
            print_line(
                f"{out / split}: {counted(meta.pictures, 'image')} of {counted(len(meta.class_names), 'class')}, "
                f"{counted(len(meta.views), 'view')} of {meta.grid[0]} x {meta.grid[1]} codes"
                f"{', with captions' if meta.captions else ''}"
            )
