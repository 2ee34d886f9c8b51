"""Draw pictures of the classes you name.

Writes one PNG for each picture, named by class and seed, and sheet.png with all of them.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import Parser, add_model
from aimamba.errors import ConfigError

if TYPE_CHECKING:
    from aimamba.generation import SamplingConfig

_CLASSES_BY_DEFAULT = 10


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_model(parser)
    parser.add_argument("--classes", metavar="NAMES", help="names or numbers, by commas (default: the first ten)")
    parser.add_argument("-n", type=int, default=8, metavar="N", help="pictures of each class (default 8)")
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="default: samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture; they count up (default 0)")
    parser.add_argument("--cfg-scale", type=float, default=1.0, help="guidance; 1, the default, is none")
    parser.add_argument("--cfg-schedule", default="constant", help="constant (default), linear or power-cosine")
    parser.add_argument("--cfg-power", type=float, default=1.0, help="power of power-cosine (default 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1; 0 takes the most likely code")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest codes (default 0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus in (0, 1] (default 1: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at once; does not change them (16)")


def run(arguments: argparse.Namespace) -> None:
    """Draw and write."""
    from tqdm import tqdm

    from aimamba.data.sheets import sheet
    from aimamba.generation import SamplingConfig
    from aimamba.models.placement import resolve_device, resolve_dtype
    from aimamba.pipeline import Pipeline

    config = SamplingConfig(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        cfg_scale=arguments.cfg_scale,
        cfg_schedule=arguments.cfg_schedule,
        cfg_power=arguments.cfg_power,
        seed=arguments.seed,
    )
    if arguments.n < 1:
        raise ConfigError(f"-n must be at least 1 picture a class, got {arguments.n}")
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = prepare_folder(arguments.out)
    pipeline = Pipeline.from_pretrained(arguments.model, tokenizer=arguments.tokenizer, device=device, dtype=dtype)
    if arguments.classes is None:
        labels = list(range(min(_CLASSES_BY_DEFAULT, pipeline.generator.config.num_classes)))
    else:
        labels = [pipeline.label(name) for name in arguments.classes.split(",") if name.strip()]
    if not labels:
        raise ConfigError("--classes names no class; expected names or numbers separated by commas")

    pictures = len(labels) * arguments.n
    tokens = pipeline.generator.config.num_tokens
    look = "{l_bar}{bar}| {n:.1f}/{total} pictures [{elapsed}<{remaining}]"
    with tqdm(total=pictures, bar_format=look) as bar:
        images = pipeline(
            labels,
            arguments.n,
            config,
            batch_size=arguments.batch_size,
            progress=lambda done, _: bar.update(done / tokens - bar.n),
        )
    rows = [images[i * arguments.n : (i + 1) * arguments.n] for i in range(len(labels))]
    names = [pipeline.class_name(label) for label in labels]
    for label, name, row in zip(labels, names, rows, strict=True):
        for j, image in enumerate(row):
            image.save(out / f"{file_name(name) or label}-seed{config.seed + j}.png")
    path = out / "sheet.png"
    sheet(rows, row_names=names, title=f"{arguments.model}, {describe(config)}").save(path)
    print(f"{pictures} pictures of {tokens} codes in {out}, all on one sheet: {path}")


def describe(config: "SamplingConfig") -> str:
    """Settings that differ from the defaults, for the title of a sheet."""
    schedule = "" if config.cfg_schedule == "constant" else f" {config.cfg_schedule}"
    parts = [f"guidance {config.cfg_scale:g}{schedule}"]
    parts += [f"temperature {config.temperature:g}"] if config.temperature != 1 else []
    parts += [f"top-k {config.top_k}"] if config.top_k else []
    parts += [f"top-p {config.top_p:g}"] if config.top_p < 1 else []
    return ", ".join([*parts, f"seed {config.seed}"])


def file_name(text: str) -> str:
    """Turn a class name into part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text.strip()).strip("-.")


def prepare_folder(path: Path) -> Path:
    """Make the output folder before the work begins.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror}; give another --out") from error
    return path
