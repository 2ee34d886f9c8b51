"""Command-line arguments whose faults fit on one line."""

import argparse
from collections.abc import Iterable
from typing import Any, NoReturn

from aimamba.errors import ConfigError, suggest


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``ConfigError`` instead of printing its usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse all arguments; an unknown option brings a suggestion."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            near = suggest(unknown[0].split("=")[0], known) if unknown[0].startswith("-") else ""
            self.error(f"unexpected argument {unknown[0]!r}{near}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong, and where to read more."""
        raise ConfigError(f"{self.prog.partition(' ')[2]}: {message}; see '{self.prog} --help'")


def add_model(parser: Parser) -> None:
    """Add ``--model`` and where and how precisely it runs."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="folder of a saved model or training run, an official checkpoint, or a hub id such as hp-l33/aim-base",
    )
    add_placement(parser)


def add_placement(parser: Parser) -> None:
    """Add ``--tokenizer``, ``--device`` and ``--dtype``."""
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, when the model has none inside")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or float64")
