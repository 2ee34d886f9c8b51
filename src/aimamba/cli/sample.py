"""Generate images of the classes you name.

Writes each image as a PNG named by class and seed as soon as it is finished, and sheet.png with up to 32 samples of
each class. With --npz, all images go into one file instead, in the format of ADM's evaluator.
"""

import argparse
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import (
    Parser,
    add_engine,
    add_foreign_tokenizer,
    add_placement,
    add_sampling,
    load_pipeline,
    require_positive,
)
from aimamba.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from aimamba.generation import SamplingConfig
    from aimamba.pipeline import Pipeline

_CLASSES_BY_DEFAULT = 10
_SHEET_COLUMNS = 32


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model",
        default="avatars-64",
        metavar="MODEL",
        help="avatars-64 (default), the folder of a saved model or training run, an official checkpoint, or a hub id "
        "such as hp-l33/aim-base",
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="class names or numbers (7, or #7 where classes are named by numbers), separated by commas (default: the "
        "first ten)",
    )
    parser.add_argument(
        "-n", type=int, default=8, metavar="N", help="samples of each class (default 8); with --npz, in all"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("samples"), metavar="DIR", help="folder for the images (default: samples)"
    )
    parser.add_argument("--npz", type=Path, metavar="FILE", help="write N samples of all classes into one .npz file")
    parser.add_argument("--labels", metavar="HOW", help="with --npz: balanced (default): classes in turn; or random")
    add_foreign_tokenizer(parser)
    add_sampling(parser)
    add_placement(parser)
    add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Generate and write."""
    from aimamba.cli.output import output_file, output_folder, print_line
    from aimamba.config import check, from_mapping
    from aimamba.data.sheets import sheet
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.generation import SamplingConfig

    settings = {field.name: getattr(arguments, field.name) for field in fields(SamplingConfig)}
    config = from_mapping(SamplingConfig, settings, where="sample")
    require_positive(n=arguments.n, batch_size=arguments.batch_size)
    last = config.seed + arguments.n - 1
    check(
        last < 1 << 63,
        f"--seed {config.seed} is too large for -n {arguments.n}: the last seed would be {last}, and "
        "it must be below 2^63; give a smaller --seed",
    )
    resolve_device(arguments.device), resolve_dtype(arguments.dtype)  # a wrong name is reported first
    out, file = output_folder(arguments.out), output_file("--npz", arguments.npz)
    _check_npz(arguments)
    pipeline = load_pipeline(arguments)
    if file is not None:
        return _write_npz(file, arguments, pipeline, config)
    labels = chosen_classes(arguments.classes, pipeline)

    pipeline.prepare()  # reports an unsupported engine before anything is written
    out.mkdir(parents=True, exist_ok=True)
    rows = _generate(pipeline, labels, arguments.n, config, arguments.batch_size, out)
    names = [pipeline.class_name(label) for label in labels]
    path, title = out / "sheet.png", f"{arguments.model}, {config.describe()}"
    if arguments.n < len(labels) <= _SHEET_COLUMNS:  # a wide sheet is easier to read than a tall one
        sheet(list(zip(*rows, strict=True)), column_names=names, title=title).save(path)
    else:
        sheet(rows, row_names=names, title=title).save(path)
    print_line(f"{len(labels) * arguments.n} images in {out}, on one sheet: {path}")
    return None


def _check_npz(arguments: argparse.Namespace) -> None:
    """Refuse options that need ``--npz``, or that it excludes."""
    if arguments.npz is None and arguments.labels is not None:
        raise ConfigError("sample: --labels needs --npz; choose classes with --classes")
    if arguments.npz is not None and arguments.classes is not None:
        raise ConfigError("sample: --npz samples all classes; leave --classes out")
    if arguments.npz is not None and arguments.npz.suffix != ".npz":
        raise ConfigError(
            f"--npz {arguments.npz}: the name must end in .npz, for 'aimamba evaluate' to recognise the file"
        )


def chosen_classes(text: str | None, pipeline: "Pipeline") -> list[int]:
    """Return the labels of the classes named in ``text``, each once. A class name may contain commas.

    Raises:
        ConfigError: A class is unknown or could be several, or no class is named.
    """
    from aimamba.data.class_names import candidates

    if text is None:
        return list(range(min(_CLASSES_BY_DEFAULT, pipeline.generator.config.num_classes)))
    longest = 1 + max((name.count(",") for name in pipeline.class_names), default=0)
    pieces, labels = text.split(","), []
    while pieces:
        starts = {count: ",".join(pieces[:count]) for count in range(longest, 0, -1)}
        count = next((count for count, start in starts.items() if candidates(start, pipeline.class_names)), 1)
        if starts[count].strip():
            exact = starts[count] in pipeline.class_names
            labels.append(pipeline.label(starts[count] if exact else starts[count].strip()))
        pieces = pieces[count:]
    if not labels:
        raise ConfigError(f"--classes names no class, got {text!r}; expected names or numbers separated by commas")
    return list(dict.fromkeys(labels))


def _generate(
    pipeline: "Pipeline", labels: list[int], n: int, config: "SamplingConfig", batch_size: int, out: Path
) -> "list[list[Image.Image]]":
    """Generate and save ``n`` images of each class; return those for the sheet, one row for each class."""
    from tqdm import tqdm

    from aimamba.cli.output import file_names

    stems = file_names([pipeline.class_name(label) for label in range(pipeline.generator.config.num_classes)])
    rows: list[list[Image.Image]] = [[] for _ in labels]
    done, total, tokens = 0, len(labels) * n, pipeline.generator.config.num_tokens
    look = "{l_bar}{bar}| {n:.1f}/{total:.0f} images [{elapsed}<{remaining}]"
    with tqdm(total=total * tokens, unit_scale=1 / tokens, bar_format=look) as bar:

        def show(codes: int, _: int) -> None:
            bar.update(done * tokens + codes - bar.n)

        try:
            for places, seeds in _blocks(len(labels), n, batch_size):
                some, first = [labels[place] for place in places], replace(config, seed=config.seed + seeds.start)
                images = iter(pipeline(some, len(seeds), first, batch_size=batch_size, progress=show))
                for place in places:
                    for seed in seeds:
                        image = next(images)
                        image.save(out / f"{stems[labels[place]]}-seed{config.seed + seed}.png")
                        rows[place] += [image] if seed < _SHEET_COLUMNS else []
                done += len(places) * len(seeds)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped with {done} of {total} images finished, in {out}") from None
    return rows


def _write_npz(path: Path, arguments: argparse.Namespace, pipeline: "Pipeline", config: "SamplingConfig") -> None:
    """Generate images of all classes and write them to one file; image i has the seed ``config.seed + i``."""
    from tqdm import tqdm

    from aimamba.cli.output import print_line
    from aimamba.data.npz import write_npz
    from aimamba.evaluation.sources import ModelSource, make_labels

    how = arguments.labels or "balanced"
    labels = make_labels(how, arguments.n, pipeline.generator.config.num_classes, config.seed)
    source = ModelSource(arguments.model, pipeline, labels, config, arguments.batch_size)
    with tqdm(total=len(labels), unit="image") as bar:

        def watched() -> "Iterator[np.ndarray]":
            for images in source.batches(arguments.batch_size):
                yield images
                bar.update(len(images))

        write_npz(path, watched(), labels, source.size)
    print_line(f"{len(labels)} images of {source.size} px in {path}")


def _blocks(classes: int, n: int, batch_size: int) -> Iterator[tuple[range, range]]:
    """Divide the grid of classes and seeds into blocks of at most ``batch_size`` images."""
    together = max(1, batch_size // n)
    for first in range(0, classes, together):
        for seed in range(0, n, batch_size):
            yield range(first, min(first + together, classes)), range(seed, min(seed + batch_size, n))
