"""Write images as codes, for a generator to train on.

IMAGES is a folder with a sub-folder of images for each class, "avatars" or "fashion-mnist". Training and held-out
images are encoded apart, into DIR/train and DIR/held-out; held-out ones in their centre view alone. The same command
continues an encoding that was interrupted, and ends with the same bytes.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser, add_placement, require_positive


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id")
    parser.add_argument("images", metavar="IMAGES", help="folder of class sub-folders, avatars or fashion-mnist")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default 256)")
    parser.add_argument("--views", default="center", help="center (default), center-flip or ten-crop")
    parser.add_argument("--per-class", type=int, metavar="N", help="at most this many training images of each class")
    parser.add_argument("--held-out-per-class", type=int, metavar="N", help="the same for held-out images")
    parser.add_argument("--batch-size", type=int, default=32, help="images at once (default 32)")
    parser.add_argument("--upscale", action="store_true", help="enlarge images that are smaller than --size")
    parser.add_argument("--strict", action="store_true", help="stop at the first broken image")
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Encode both splits."""
    from tqdm import tqdm

    from aimamba.cli.output import output_folder
    from aimamba.config import check
    from aimamba.data.codes import view_names
    from aimamba.data.sets import open_images
    from aimamba.data.shards import encode_to_shards
    from aimamba.data.splits import Split
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.models import VQModel

    require_positive(size=arguments.size, batch_size=arguments.batch_size)
    view_names(arguments.views)
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = output_folder(arguments.out)
    tokenizer = VQModel.from_pretrained(arguments.model, device=device, dtype=dtype)
    factor = tokenizer.config.downsampling
    check(
        arguments.size % factor == 0, f"--size must be a multiple of {factor}, the down-sampling; got {arguments.size}"
    )
    splits: tuple[tuple[Split, int | None, str], ...] = (
        ("train", arguments.per_class, arguments.views),
        ("held-out", arguments.held_out_per_class, "center"),
    )
    for split, per_class, views in splits:
        images = open_images(
            arguments.images,
            size=arguments.size,
            split=split,
            per_class=per_class,
            upscale=arguments.upscale,
            strict=arguments.strict,
            progress=True,
        )
        with tqdm(total=len(images), unit="image", desc=split) as bar:
            meta = encode_to_shards(
                tokenizer,
                images,
                out / split,
                views=views,
                batch_size=arguments.batch_size,
                progress=lambda done, _, bar=bar: bar.update(done - bar.n),  # type: ignore[misc]
            )
        print(
            f"{out / split}: {meta.pictures} images of {len(meta.class_names)} classes, "
            f"{len(meta.views)} views of {meta.grid[0]} x {meta.grid[1]} codes"
        )
