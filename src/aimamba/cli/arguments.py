"""Command-line arguments whose faults fit on one line."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from aimamba.errors import ConfigError, suggest


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``ConfigError`` instead of printing its usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse all arguments; an unknown option brings a suggestion, before anything that is missing."""
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
        """Tell what is wrong, and where to read more."""
        raise ConfigError(f"{self.prog.partition(' ')[2]}: {message}; see '{self.prog} --help'")


def add_placement(parser: Parser) -> None:
    """Add ``--device`` and ``--dtype``: where and how precisely a model runs."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or float64")


def add_engine(parser: Parser) -> None:
    """Add ``--engine``: what computes the steps of drawing."""
    parser.add_argument(
        "--engine",
        default="auto",
        help="auto (default), plain (PyTorch), native (a CPU kernel, compiled once), native-int8 (the same with "
        "8-bit weights) or cuda-graphs",
    )


def add_sampling(parser: Parser) -> None:
    """Add the settings of a draw, which have the names and defaults of ``SamplingConfig``, and ``--batch-size``."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image; they count up (default 0)")
    parser.add_argument("--cfg-scale", type=float, default=1.0, help="guidance; 1, the default, is none")
    parser.add_argument("--cfg-schedule", default="constant", help="constant (default), linear or power-cosine")
    parser.add_argument("--cfg-power", type=float, default=1.0, help="power of power-cosine (default 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1; 0 takes the most likely code")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest codes (default 0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus in (0, 1] (default 1: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="images at once; does not change them (16)")


def add_measuring(parser: Parser) -> None:
    """Add what every command that measures has: the network, the size of a folder's images, where numbers go."""
    parser.add_argument(
        "--features",
        default="lite0",
        metavar="NETWORK",
        help="lite0 (default), inception (downloads its weights), or the file of Inception's weights",
    )
    parser.add_argument("--size", type=int, help="cut a folder's images to squares of this side in pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number and its settings there")


def require_positive(**values: int) -> None:
    """Refuse counts below 1, named by their options without dashes.

    Raises:
        ConfigError: The first that is too small.
    """
    for name, value in values.items():
        if value < 1:
            option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} must be at least 1, got {value}")
