"""Generate images of the classes or the prompts you name.

Writes each image as a PNG named by class and seed as soon as it is finished, and sheet.png with up to 32 samples of
each class. Every image holds its settings: --like draws it again. With --npz, all images go into one file instead, in
the format of ADM's evaluator. The same command continues one that was interrupted. Several GPUs share the images with
--devices or under torchrun, and make the same ones: torchrun --nproc-per-node 8 -m aimamba sample ...
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import (
    MODEL_BY_DEFAULT,
    Parser,
    add_engine,
    add_foreign_tokenizer,
    add_placement,
    add_sampling,
    batch_size_of,
    load_pipeline,
    require_positive,
    sampling_of,
)
from aimamba.cli.choices import chosen
from aimamba.cli.many import add_devices, add_ray, crew, started
from aimamba.errors import ConfigError, counted

if TYPE_CHECKING:
    from aimamba.generation import SamplingConfig
    from aimamba.pipeline import Pipeline
    from aimamba.sharing import Sharing

_SAMPLES_BY_DEFAULT = 8
_FOLDER_BY_DEFAULT = "samples"


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="avatars-64 (default), avatars-64-text, emoji-64, the folder of a saved model or training run, an "
        "official checkpoint, or a hub id such as hp-l33/aim-base",
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="class names or numbers (7, or #7 where classes are named by numbers), separated by commas; all "
        "for every class (default: the first ten; 'aimamba info MODEL --classes' lists them)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what to draw, for a model that is trained on captions, such as 'a rocket, flat design'; may be given "
        "several times. With --classes, every prompt is drawn in each of these classes",
    )
    parser.add_argument(
        "-n",
        type=int,
        default=_SAMPLES_BY_DEFAULT,
        metavar="N",
        help="samples of each class or prompt (default 8); with --npz, in all",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the images (default: samples)")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="write N samples of all classes into one .npz file")
    parser.add_argument(
        "--like", type=Path, metavar="IMAGE", help="draw this sample (a PNG of this command) again from its settings"
    )
    parser.add_argument("--labels", metavar="HOW", help="with --npz: balanced (default): classes in turn; or random")
    add_foreign_tokenizer(parser)
    add_sampling(parser, fitting=True)
    add_placement(parser)
    add_devices(parser)
    add_ray(parser)
    add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Generate and write."""
    from aimamba.distributed import find_place, one_voice

    if started(arguments):
        return
    if arguments.like is not None:
        _draw_again(arguments)
        return
    with one_voice(find_place()):
        config, out, file = _checked(arguments)
    advice = f"the same command goes on with what is finished in {out if file is None else f'{file}.parts'}"
    with crew(arguments, advice) as sharing:
        pipeline = sharing.in_turn(lambda: _load(arguments, sharing))
        config = pipeline.settings(config)
        if file is not None:
            _write_npz(file, arguments, pipeline, config, sharing)
        else:
            _write_folder(out, arguments, pipeline, config, sharing)


def _checked(arguments: argparse.Namespace) -> "tuple[SamplingConfig, Path, Path | None]":
    """Check all options that can be checked without the model; return the settings, the folder and the file."""
    from aimamba.cli.output import output_file, output_folder
    from aimamba.config import check
    from aimamba.devices import resolve_device, resolve_dtype

    arguments.model = MODEL_BY_DEFAULT if arguments.model is None else arguments.model
    config = sampling_of(arguments, "sample")
    require_positive(n=arguments.n, batch_size=arguments.batch_size)
    last = config.seed + arguments.n - 1
    check(
        last < 1 << 63,
        f"--seed {config.seed} is too large for -n {arguments.n}: the last seed would be {last}, and "
        "it must be below 2^63; give a smaller --seed",
    )
    resolve_dtype(arguments.dtype)  # a wrong name is reported first
    if arguments.ray is None:
        resolve_device(arguments.device)
    out = output_folder(arguments.out or Path(_FOLDER_BY_DEFAULT))
    file = output_file("--npz", arguments.npz, suffix=".npz")
    _check_npz(arguments)
    return config, out, file


def _load(arguments: argparse.Namespace, sharing: "Sharing") -> "Pipeline":
    """Load the model and prepare its engine, which reports one that is not supported before anything is written."""
    from aimamba.evaluation.sources import engine_of_workers

    pipeline = load_pipeline(arguments, quiet=not sharing.is_first)
    if sharing.cluster is None:
        pipeline.prepare()
    else:
        pipeline.engine = engine_of_workers(pipeline, sharing.cluster)
    return pipeline


def _write_folder(
    out: Path, arguments: argparse.Namespace, pipeline: "Pipeline", config: "SamplingConfig", sharing: "Sharing"
) -> None:
    """Write an image for each class and seed; those that are there with the same settings stay."""
    from contextlib import ExitStack

    from aimamba.cli.output import locked_output, print_line, print_notice
    from aimamba.cli.sample_files import others, plan, shown_names, write_samples, write_settings, write_sheets
    from aimamba.evaluation.sources import MOST_SAMPLES

    wanted = sharing.in_turn(lambda: chosen(arguments.classes, arguments.prompt, pipeline))
    count = len(wanted) * arguments.n
    if count > MOST_SAMPLES:
        raise ConfigError(f"sample: -n {arguments.n} makes {count:,} images; a folder may have {MOST_SAMPLES:,}")
    model = pipeline.record(arguments.model, arguments.tokenizer)
    seeds = range(config.seed, config.seed + arguments.n)
    rows = plan(pipeline, wanted, seeds, config, model, out)

    def begin() -> None:
        stack.enter_context(locked_output(out))
        write_settings(out, model, config, rows)

    with ExitStack() as stack:
        sharing.once(begin)
        sharing.in_turn(lambda: _check_seen(out))
        files = [file for row in rows for file in row]
        batch_size = batch_size_of(arguments, pipeline, len(files), sharing, guided=config.cfg_scale != 1)
        there = write_samples(pipeline, files, batch_size, sharing=sharing)
        if not sharing.is_first:
            return
        names = shown_names(pipeline, wanted)
        path = write_sheets(out, rows, names, f"{arguments.model}, {config.describe()}", pipeline.image_size)
    kept = f" ({there} were there)" if there else ""
    if left := others(out, rows):
        print_notice(f"{out} also holds {counted(left, 'image')} of earlier commands, not on this sheet")
    print_line(f"{counted(count, 'image')} in {out}{kept}, on one sheet: {path}")


def _check_seen(out: Path) -> None:
    """Check that this machine sees the folder that the first process has begun to fill."""
    from aimamba.cli.sample_files import SETTINGS_FILE

    if not (out / SETTINGS_FILE).is_file():
        raise ConfigError(
            f"--out {out}: the first process has written there, and this machine does not see it; name a folder on a "
            "disk that all machines share"
        )


def _draw_again(arguments: argparse.Namespace) -> None:
    """Draw the image of a PNG again from the settings in it."""
    from aimamba.cli.output import output_folder, print_line
    from aimamba.cli.sample_files import given_of, plan, write_samples
    from aimamba.config import check
    from aimamba.data.png_text import read_png_text
    from aimamba.distributed import find_place
    from aimamba.errors import CheckpointError, DataError
    from aimamba.files import expand_home
    from aimamba.generation import SamplingConfig
    from aimamba.generation.record import parse_record

    check(find_place() is None, "sample: --like draws one image; start it without torchrun and without --devices")
    _check_like(arguments, SamplingConfig())
    path, out = expand_home(arguments.like), output_folder(arguments.out or Path(_FOLDER_BY_DEFAULT))
    record = parse_record(read_png_text(path), path)
    if record.edit is not None:
        raise DataError(
            f"{path}: was made by 'aimamba {record.edit.command}'; --like draws samples of a class alone, so give that "
            "command again"
        )
    known = record.model
    if arguments.model is None:
        _check_named(known.model, "--model", path)
    if arguments.tokenizer is None and known.tokenizer is not None:
        _check_named(known.tokenizer, "--tokenizer", path)
    arguments.tokenizer = known.tokenizer if arguments.tokenizer is None else arguments.tokenizer
    arguments.model = known.model if arguments.model is None else arguments.model
    arguments.dtype = known.dtype
    arguments.engine = known.engine if arguments.engine == "auto" else arguments.engine
    arguments.device = known.device if arguments.device == "auto" and known.device == "cpu" else arguments.device
    pipeline = load_pipeline(arguments)
    found = pipeline.record(known.model, known.tokenizer)
    if found.fingerprint != known.fingerprint:
        raise CheckpointError(
            f"{path}: was drawn by another model ({known.fingerprint[:12]}) than {arguments.model} "
            f"({found.fingerprint[:12]}); give that one with --model"
        )
    classes = pipeline.generator.config.num_classes
    fits = record.label < classes + (record.prompt is not None)  # a prompt may stand alone, with the null class
    check(fits, f"{path}: its class is number {record.label}, and the model has {classes}")
    seeds = range(record.sampling.seed, record.sampling.seed + 1)
    pipeline.prepare()
    out.mkdir(parents=True, exist_ok=True)
    [[file]] = plan(
        pipeline, [given_of(record, classes)], seeds, record.sampling, replace(found, aimamba=known.aimamba), out
    )
    file = file._replace(record=replace(file.record, class_name=record.class_name))
    write_samples(pipeline, [file], 1, again=True)
    print_line(f"{path} drawn again: {file.path}")


def _check_like(arguments: argparse.Namespace, defaults: "SamplingConfig") -> None:
    """Refuse options that say what the image says."""
    given = {field.name: getattr(arguments, field.name) for field in fields(defaults)}
    expected = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    given |= {
        "classes": arguments.classes,
        "prompt": arguments.prompt,
        "npz": arguments.npz,
        "labels": arguments.labels,
    }
    given |= {"n": arguments.n, "dtype": arguments.dtype, "ray": arguments.ray}
    expected |= {
        "ray": None,
        "classes": None,
        "prompt": None,
        "npz": None,
        "labels": None,
        "n": _SAMPLES_BY_DEFAULT,
        "dtype": "float32",
    }
    for name, value in given.items():
        if value != expected[name]:
            option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
            raise ConfigError(f"sample: --like takes class, seed and settings from the image; leave {option} out")


def _check_named(name: str, option: str, path: Path) -> None:
    """Check that a model named by an image is on this machine: a file from anywhere shall start no download."""
    from aimamba.checkpoints.locate import is_here
    from aimamba.errors import CheckpointError

    if not is_here(name):
        raise CheckpointError(
            f"{path}: was drawn by the model {name[:200]!r}, which is not on this machine under that name; give it "
            f"with {option}"
        )


def _check_npz(arguments: argparse.Namespace) -> None:
    """Refuse options that need ``--npz``, or that it excludes."""
    if arguments.npz is None and arguments.ray is not None:
        raise ConfigError("sample: --ray writes one file; name it with --npz")
    if arguments.npz is None and arguments.labels is not None:
        raise ConfigError("sample: --labels needs --npz; choose classes with --classes")
    if arguments.npz is not None and arguments.prompt is not None:
        raise ConfigError("sample: --npz samples all classes; leave --prompt out")
    if arguments.npz is not None and arguments.classes is not None:
        raise ConfigError("sample: --npz samples all classes; leave --classes out")
    if arguments.npz is not None and arguments.out is not None:
        raise ConfigError("sample: --npz writes one file; leave --out out")


def _write_npz(
    path: Path, arguments: argparse.Namespace, pipeline: "Pipeline", config: "SamplingConfig", sharing: "Sharing"
) -> None:
    """Generate images of all classes and write them to one file; image i has the seed ``config.seed + i``.

    Until the file is there, the codes are kept beside it, and the same command goes on with them.
    """
    from contextlib import ExitStack

    from tqdm import tqdm

    from aimamba.cli.output import locked_parts, print_line, print_notice, require_space, write_json
    from aimamba.config import to_mapping
    from aimamba.data.npz import npz_bytes
    from aimamba.evaluation.kept_codes import KeptCodes
    from aimamba.evaluation.sources import ModelSource, kept_settings, make_labels

    how = arguments.labels or "balanced"
    model = pipeline.record(arguments.model, arguments.tokenizer)
    if sharing.cluster is not None:
        model = replace(model, device=sharing.cluster.device)
    parts = path.with_name(f"{path.name}.parts")

    def begin() -> None:
        codes = 4 * arguments.n * pipeline.grid**2
        require_space(path.parent, npz_bytes(arguments.n, pipeline.image_size) + codes, f"--npz {path}")
        stack.enter_context(locked_parts(parts))

    def samples() -> ModelSource:
        labels = make_labels(how, arguments.n, pipeline.generator.config.num_classes, config.seed)
        keep = lambda config: KeptCodes(parts, kept_settings(model, how, config))  # noqa: E731
        return ModelSource(arguments.model, pipeline, labels, config, batch_size, keep=keep)

    with ExitStack() as stack:
        sharing.once(begin)
        batch_size = batch_size_of(arguments, pipeline, arguments.n, sharing, guided=config.cfg_scale != 1)
        source = sharing.in_turn(samples)
        source.agree(sharing)
        assert source.kept is not None
        if source.known and sharing.is_first:
            print_notice(f"{source.known} of {len(source)} samples are there: going on from {parts}")
        try:
            with tqdm(total=len(source), unit="image", disable=not sharing.is_first) as bar:
                source.save(path, bar.update, sharing=sharing)
        except KeyboardInterrupt as error:
            error.args = (
                f"stopped with {source.known} of {len(source)} samples finished, in {parts}; "
                "the same command goes on from there",
            )
            raise
        if sharing.is_first:
            about = {**to_mapping(model), "labels": how, "n": len(source), "class_names": list(pipeline.class_names)}
            write_json(path.with_suffix(".settings.json"), {**about, "sampling": to_mapping(config)})
        if sharing.is_first_here:
            source.kept.remove()
    if sharing.is_first:
        print_line(f"{len(source)} images of {source.size} px in {path}")
