"""What the commands that edit images share: options, opening of images, files with their settings, and a sheet."""

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aimamba.cli.arguments import (
    MODEL_BY_DEFAULT,
    Parser,
    add_engine,
    add_foreign_tokenizer,
    add_placement,
    add_sampling,
    load_pipeline,
    require_positive,
    sampling_of,
)
from aimamba.errors import counted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from aimamba.generation import SamplingConfig
    from aimamba.generation.record import ModelRecord
    from aimamba.pipeline import Pipeline, Prompt
    from aimamba.pipeline.images import Fit

_GREY = 127


def add_model(parser: Parser) -> None:
    """Add ``--model``, ``--tokenizer`` and where they run."""
    parser.add_argument(
        "--model", default=MODEL_BY_DEFAULT, metavar="MODEL", help="as of 'aimamba sample' (default avatars-64)"
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    add_foreign_tokenizer(parser)
    add_placement(parser)
    add_engine(parser)


def add_fit(parser: Parser) -> None:
    """Add ``--fit``: what becomes of an image of another size than the model's."""
    parser.add_argument(
        "--fit",
        default="exact",
        help="an image of another size: exact (default) refuses it, crop takes its centre square, stretch all of it",
    )


def add_prompt(parser: Parser, what: str) -> None:
    """Add ``--prompt``: a sentence in place of a class, or beside one."""
    parser.add_argument(
        "--prompt", metavar="TEXT", help=f"what {what}, for a model that is trained on captions; also beside --class"
    )


def given_of(arguments: argparse.Namespace, pipeline: "Pipeline") -> "int | Prompt | None":
    """Return the class or the prompt that the options name, or None.

    Raises:
        ConfigError: There is no such class, or the model takes no prompts.
    """
    from aimamba.pipeline import Prompt

    if arguments.prompt is not None:
        given = Prompt(arguments.prompt, arguments.label)
        pipeline.labels([given])
        return given
    return None if arguments.label is None else pipeline.label(arguments.label)


def add_drawing(parser: Parser, out: str, n: int) -> None:
    """Add ``-n``, ``--out``, the settings of sampling, and the model."""
    parser.add_argument("-n", type=int, default=n, metavar="N", help=f"images of each (default {n})")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help=f"default: {out}")
    add_sampling(parser)
    add_model(parser)


class Begun(NamedTuple):
    """What a command needs before it draws."""

    pipeline: "Pipeline"
    config: "SamplingConfig"
    model: "ModelRecord"
    out: Path


def begin(
    arguments: argparse.Namespace,
    command: str,
    *,
    images: Sequence[Path] = (),
    beside: Sequence[Path] = (),
    each: int = 1,
) -> Begun:
    """Check the options of ``add_drawing`` and load the model.

    Args:
        arguments: Those of the command.
        command: Its name.
        images: The image files that it works on.
        beside: Other files that it reads.
        each: How many images ``-n`` counts as one.

    Raises:
        ConfigError: An option is out of range, or a file that is read would be replaced.
        CheckpointError: The model is missing or damaged.
    """
    from aimamba.cli.output import file_names, output_folder, require_apart
    from aimamba.config import check
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.files import expand_home
    from aimamba.pipeline.drawing import MOST_IMAGES

    config = sampling_of(arguments, command)
    require_positive(n=arguments.n, batch_size=arguments.batch_size)
    check(arguments.n <= MOST_IMAGES, f"-n must be at most {MOST_IMAGES:,}, got {arguments.n}")
    count = arguments.n * max(1, len(images)) * each
    check(count <= MOST_IMAGES, f"-n {arguments.n} makes {count:,} images, and at most {MOST_IMAGES:,} can be made")
    check(config.seed + arguments.n <= 1 << 63, f"--seed {config.seed} is too large for -n {arguments.n}")
    resolve_device(arguments.device), resolve_dtype(arguments.dtype)  # a wrong name is reported first
    out = output_folder(arguments.out)
    stems, seeds = file_names([path.stem for path in images]), range(config.seed, config.seed + arguments.n)
    made = ("sheet.png", *(_file_of(stem, seed) for stem in stems for seed in seeds))
    require_apart((("--out", out / name) for name in made), map(expand_home, (*images, *beside)))
    pipeline = load_pipeline(arguments)
    config = pipeline.settings(config)
    pipeline.prepare()  # reports an unsupported engine before anything is written
    return Begun(pipeline, config, pipeline.record(arguments.model, arguments.tokenizer), out)


def _file_of(stem: str, seed: int) -> str:
    """Return the name of the file of what was made of an image."""
    return f"{stem}-seed{seed}.png"


def read_image(path: Path, size: int, fit: "Fit") -> "Tensor":
    """Read an image file as the model takes it, (1, 3, s, s).

    Raises:
        DataError: It cannot be read or has another size; the message names it.
    """
    from aimamba.data.files import open_image
    from aimamba.errors import DataError
    from aimamba.files import expand_home
    from aimamba.pipeline.images import read_images

    image = open_image(expand_home(path))
    try:
        return read_images(image, size, fit)
    except DataError as error:
        reason = re.sub(r"fit='(\w+)'", r"--fit \1", str(error).removeprefix("image 0 "))
        raise DataError(f"{path}: {reason}") from error


class Drawn(NamedTuple):
    """An image to be written.

    Attributes:
        name: Name of its file.
        image: The image.
        label: Number of its class.
        seed: Its seed.
        edit: Fields of its ``EditRecord``.
        prompt: The sentence that it was drawn after.
    """

    name: str
    image: "Image.Image"
    label: int
    seed: int
    edit: dict[str, Any]
    prompt: str | None = None


def write(begun: Begun, command: str, drawn: Sequence[Drawn]) -> None:
    """Write images, each with its settings."""
    from aimamba.config import from_mapping
    from aimamba.data.png_text import write_png
    from aimamba.generation.record import EditRecord, SampleRecord

    begun.out.mkdir(parents=True, exist_ok=True)
    for each in drawn:
        record = SampleRecord(
            class_name=begun.pipeline.class_name(each.label),
            label=each.label,
            prompt=each.prompt,
            sampling=replace(begun.config, seed=each.seed),
            model=begun.model,
            edit=from_mapping(EditRecord, {"command": command, **each.edit}, where=command),
        )
        write_png(begun.out / each.name, each.image, record.to_text())


def finish(
    begun: Begun, rows: Sequence[Sequence["Image.Image"]], row_names: Sequence[str], column_names: Sequence[str],
    title: str, count: int,
) -> None:  # fmt: skip
    """Write the sheet, and print what there is."""
    from aimamba.cli.output import print_line
    from aimamba.data.png_text import write_png
    from aimamba.data.sheets import sheet

    path = begun.out / "sheet.png"
    text = f"{begun.model.model}, {title}, {begun.config.describe()}"
    found = sheet(rows, row_names=row_names, column_names=column_names, title=text)
    write_png(path, found, json.dumps({"sheet": text}))
    print_line(f"{counted(count, 'image')} in {begun.out}, on one sheet: {path}")


class Edits(NamedTuple):
    """What a command made of image files.

    Attributes:
        paths: The files.
        pixels: Their images (B, 3, s, s).
        hidden: Which pixels were made again (B, 1, s, s).
        codes: Their codes (B, L).
        given: Class or prompt of each image.
        images: What was made, N for each file in turn.
        about: Fields of the ``EditRecord`` of each file.
    """

    paths: Sequence[Path]
    pixels: "Tensor"
    hidden: "Tensor"
    codes: "Tensor"
    given: "Sequence[int | Prompt]"
    images: Sequence["Image.Image"]
    about: Sequence[dict[str, Any]]


def write_edits(begun: Begun, command: str, edits: Edits, shown: str, title: str) -> None:
    """Write what was made of image files, and the sheet: each image, what is kept of it as ``shown``, the results."""
    from aimamba.cli.output import file_names
    from aimamba.data.sheets import to_pil

    names, n = file_names([path.stem for path in edits.paths]), len(edits.images) // len(edits.paths)
    seeds = [begun.config.seed + j for j in range(n)]
    before, kept = to_pil(edits.pixels), to_pil(edits.pixels.masked_fill(edits.hidden, _GREY))
    drawn, rows, row_names = [], [], []
    for index, (name, given) in enumerate(zip(names, edits.given, strict=True)):
        label, prompt = begun.pipeline.label_of(given), getattr(given, "text", None)
        images = edits.images[index * n : (index + 1) * n]
        digest = hashlib.sha256(json.dumps(edits.codes[index].tolist()).encode()).hexdigest()
        about = {"image": edits.paths[index].name, "image_codes": digest, **edits.about[index]}
        drawn += [
            Drawn(_file_of(name, seed), image, label, seed, about, prompt)
            for seed, image in zip(seeds, images, strict=True)
        ]
        rows.append([before[index], kept[index], *images])
        row_names.append(", ".join(filter(None, [name, prompt, begun.pipeline.class_name(label)])))
    write(begun, command, drawn)
    finish(begun, rows, row_names, ["image", shown, *(f"seed {seed}" for seed in seeds)], title, len(drawn))


def classes_of(
    pipeline: "Pipeline", arguments: argparse.Namespace, codes: "Tensor", known: "Tensor"
) -> "list[int | Prompt]":
    """Return what each image is to show: what the options name, or what made it if it is a PNG of ours.

    Of other images it is the class under which their known tokens are likeliest.

    Raises:
        ConfigError: What is named is unknown, or nothing is known of an image that would tell its class.
    """
    from aimamba.files import expand_home

    if (named := given_of(arguments, pipeline)) is not None:
        return [named] * len(codes)
    told = [pipeline.given_in(expand_home(image).read_bytes()) for image in arguments.images]
    likeliest = pipeline.guess(codes, None, known).tolist() if None in told else [0] * len(told)
    return [other if each is None else each for each, other in zip(told, likeliest, strict=True)]


def with_bar(description: str) -> tuple[Callable[[int, int], None], Callable[[], None]]:
    """Return what shows progress on stderr, from its first step on, and what ends it."""
    from tqdm import tqdm

    bars: list[tqdm[None]] = []

    def advance(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(desc=description, total=total, bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]"))
        bars[0].update(done - bars[0].n)

    def close() -> None:
        for bar in bars:
            bar.close()

    return advance, close
