"""Generate images on the way from one class or prompt to another, all of a row with the same seed.

Writes each image as a PNG named by classes, seed and step, and sheet.png with one row for each seed. Every PNG holds
its settings.
"""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from aimamba.cli.arguments import Parser
from aimamba.cli.edits import Drawn, add_drawing, begin, finish, with_bar, write

if TYPE_CHECKING:
    from aimamba.pipeline.prompts import Class

_LONGEST_STEM = 40  # characters of a prompt in the name of a file


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("start", metavar="A", help="the first class, by name or number")
    parser.add_argument("end", metavar="B", help="the last class")
    parser.add_argument(
        "--prompts", action="store_true", help="A and B are prompts, for a model that is trained on captions"
    )
    parser.add_argument("--steps", type=int, default=8, help="images from A to B, with both (default 8)")
    parser.add_argument("--path", default="sphere", help="how class vectors are mixed: sphere (default) or linear")
    add_drawing(parser, "interpolations", 4)


def run(arguments: argparse.Namespace) -> None:
    """Generate and write."""
    from aimamba.cli.output import file_name
    from aimamba.pipeline import Prompt

    begun = begin(arguments, "interpolate", each=max(1, arguments.steps))
    pipeline, steps = begun.pipeline, arguments.steps
    ends = arguments.start, arguments.end
    if arguments.prompts:
        null_class = pipeline.generator.condition.null_class
        labels, names = [null_class, null_class], list(ends)
        given: list[Class] = [Prompt(end) for end in ends]
    else:
        labels = [pipeline.label(end) for end in ends]
        given, names = [*labels], [pipeline.class_name(label) for label in labels]
    classes = names[0], names[1]
    stem = f"{file_name(classes[0][:_LONGEST_STEM])}-{file_name(classes[1][:_LONGEST_STEM])}"
    advance, close = with_bar("generating")
    seeds = range(begun.config.seed, begun.config.seed + arguments.n)
    options = {"path": arguments.path, "batch_size": arguments.batch_size, "progress": advance}
    rows = [
        pipeline.interpolate(given[0], given[1], steps, replace(begun.config, seed=seed), **options) for seed in seeds
    ]
    close()
    shares = [step / (steps - 1) for step in range(steps)]
    drawn = [
        Drawn(
            f"{stem}-seed{seed}-step{step}.png",
            image,
            labels[round(share)],
            seed,
            {"classes": classes, "share": share, "path": arguments.path},
        )
        for seed, images in zip(seeds, rows, strict=True)
        for step, (share, image) in enumerate(zip(shares, images, strict=True))
    ]
    write(begun, "interpolate", drawn)
    columns = [classes[0], *(f"{share:.2f}" for share in shares[1:-1]), classes[1]]
    finish(begun, rows, [f"seed {seed}" for seed in seeds], columns, f"interpolation, {arguments.path}", len(drawn))
