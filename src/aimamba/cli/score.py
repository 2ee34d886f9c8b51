"""Measure how likely images are under a generator, in bits a token.

IMAGES names a set of images, see below. Images of a class that the model knows are scored under it, others without a
class; --class names one for all. Files of other shapes are cropped to their centre square and scaled.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.cli.arguments import Parser, load_pipeline, require_positive
from aimamba.cli.edits import add_model, add_prompt, given_of
from aimamba.data import spec

if TYPE_CHECKING:
    from aimamba.data.images import Images
    from aimamba.pipeline import Pipeline

_MOST_MAPS = 32


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("images", metavar="IMAGES", help="a folder, an .npz file or a named set of images")
    parser.add_argument("--class", dest="label", metavar="NAME", help="score all images under this class")
    add_prompt(parser, "all images are scored under")
    parser.add_argument("--captions", action="store_true", help="score each image under its own first caption")
    parser.add_argument(
        "--classify", action="store_true", help="also find the class under which each image is likeliest"
    )
    parser.add_argument("--maps", type=Path, metavar="FILE", help="write a sheet of up to 32 images with bits a token")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every image to this file")
    parser.add_argument("--batch-size", type=int, default=16, help="images read at once (default 16)")
    add_model(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    import torch
    from tqdm import tqdm

    from aimamba.cli.output import output_file, print_line, print_table, require_apart, write_json
    from aimamba.data.sets import open_source
    from aimamba.errors import DataError, counted

    require_positive(batch_size=arguments.batch_size)
    read = spec.paths_of([arguments.images])  # a wrong name is reported before the model is loaded
    maps = output_file("--maps", arguments.maps, suffix=".png")
    file = output_file("--json", arguments.json)
    require_apart([("--maps", maps), ("--json", file)], read)
    pipeline = load_pipeline(arguments)
    given, size = given_of(arguments, pipeline), pipeline.image_size
    images = open_source(arguments.images, default_size=size, progress=True)
    if len(images) == 0:
        raise DataError(f"{arguments.images}: there is no image to score")
    if images.size != size:
        raise DataError(
            f"{arguments.images}: {counted(len(images), 'image')} of {images.size} pixels, and the model's have {size}"
        )
    own = _labels(images, pipeline)
    under = _under(arguments, images, own, given)
    found: list[int] = []
    shown: list[Any] = []
    bits = []
    with tqdm(total=len(images), unit="image", desc="scoring") as bar:
        for batch in images.batches(arguments.batch_size):
            codes = pipeline.encode(batch)
            some = under[bar.n : bar.n + len(batch)]
            bits.append(pipeline.bits(codes, pipeline.labels_of(None if None in some else some, len(batch))).cpu())
            if arguments.classify:
                found += pipeline.log_likelihoods(codes).argmax(dim=-1).tolist()
            shown += list(batch[: max(0, _MOST_MAPS - len(shown))]) if maps is not None else []
            bar.update(len(batch))
    tokens = torch.cat(bits)
    means = tokens.mean(dim=1)
    rows = [("images", f"{len(images):,}"), ("bits an image", f"{float(tokens.sum(dim=1).mean()):.2f}")]
    rows += [("bits a token", f"{float(means.mean()):.3f} ({float(means.min()):.3f} to {float(means.max()):.3f})")]
    for each in sorted(set(own)) if under is own and own is not None else ():
        of_class = means[torch.tensor(under) == each]
        rows.append((pipeline.class_name(each), f"{float(of_class.mean()):.3f} bits a token"))
    if found and own is not None:
        right = sum(a == b for a, b in zip(found, own, strict=True))
        rows.append(("accuracy", f"{right / len(found):.4f} ({right:,} of {len(found):,})"))
    elif found:
        rows += [(f"as {pipeline.class_name(each)}", f"{found.count(each):,}") for each in sorted(set(found))]
    print_table(rows)
    if maps is not None:
        _write_maps(maps, shown, tokens.unflatten(1, (pipeline.grid, pipeline.grid)), means.tolist())
        print_line(f"maps: {maps}")
    about = [
        {
            "bits": float(tokens[i].sum()),
            "bits_per_token": float(means[i]),
            **_described(under[i], pipeline),
            **({"likeliest_class": pipeline.class_name(found[i])} if found else {}),
        }
        for i in range(len(images))
    ]
    settings: dict[str, Any] = {"images": arguments.images, "model": arguments.model}
    write_json(file, {**settings, "bits_per_token": float(means.mean()), "scores": about})


def _under(arguments: argparse.Namespace, images: "Images", own: list[int] | None, given: Any) -> "list[Any]":
    """Return what each image is scored under: what is given, its own caption, its own class, or None."""
    from aimamba.errors import ConfigError, DataError
    from aimamba.pipeline import Prompt

    if not arguments.captions:
        return [given] * len(images) if given is not None or own is None else own
    if given is not None:
        raise ConfigError("score: --captions scores each image under its own caption; leave --class and --prompt out")
    if not images.captioned:
        raise DataError(f"{arguments.images}: these images have no captions; leave --captions out")
    return [Prompt.of_caption(next(iter(images.captions(index)), "")) for index in range(len(images))]


def _described(given: Any, pipeline: "Pipeline") -> dict[str, Any]:
    from aimamba.pipeline import Prompt

    if not isinstance(given, Prompt):
        return {"class": None if given is None else pipeline.class_name(given)}
    return {"class": given.label, "prompt": given.text}


def _labels(images: "Images", pipeline: "Pipeline") -> list[int] | None:
    """Return the label of every image in the model's classes, or None where the set has no classes or has others."""
    from aimamba.data.class_names import candidates

    if images.labels is None or not images.class_names:
        return None
    found = [candidates(name, pipeline.class_names) for name in images.class_names]
    if not all(len(labels) == 1 for labels in found):
        return None
    return [found[label][0] for label in images.labels.tolist()]


def _write_maps(path: Path, images: list[Any], bits: Any, means: list[float]) -> None:
    """Write images beside their bits a token: black for none, white for as many as any token of them has."""
    import torch
    from PIL import Image

    from aimamba.data.sheets import sheet
    from aimamba.files import write_atomically

    count = len(images)
    grey = (255 * bits[:count] / bits[:count].max().clamp(min=1e-9)).to(torch.uint8).numpy()
    size = images[0].shape[0]
    pairs = [
        (Image.fromarray(image), Image.fromarray(tokens).resize((size, size), Image.Resampling.NEAREST))
        for image, tokens in zip(images, grey, strict=True)
    ]
    columns = 4
    rows = [[each for pair in pairs[i : i + columns] for each in pair] for i in range(0, count, columns)]
    names = [f"{mean:.2f} bits" for mean in means[:count]]
    heads = ["image", "bits a token"] * min(columns, count)
    made = sheet(
        rows,
        row_names=[", ".join(names[i : i + columns]) for i in range(0, count, columns)],
        column_names=heads,
    )
    write_atomically(path, lambda draft: made.save(draft, format="PNG"))
