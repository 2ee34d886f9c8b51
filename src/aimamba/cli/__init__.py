"""The command line: one file for each command, imported only when it runs.

A command module has ``add_arguments(parser)`` and ``run(arguments)``. Results go to stdout, everything else to stderr.
A user's error is reported in one line, with exit status 2.
"""

import errno
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from aimamba import __version__
from aimamba.cli.arguments import Parser
from aimamba.cli.streams import to_nowhere, usable_streams
from aimamba.errors import AimambaError, ConfigError, printable, suggest

COMMANDS = {
    "sample": "generate images of the classes you name",
    "complete": "keep the top of images and generate the rest",
    "inpaint": "draw a masked part of images again",
    "interpolate": "generate images on the way from one class to another",
    "score": "measure how likely images are, and classify them",
    "serve": "serve images over HTTP",
    "studio": "serve a page to draw in, in the browser",
    "train": "train a tokenizer or a generator from a recipe",
    "plan": "plan a training on many GPUs: memory, batch, hours, command",
    "encode": "encode images as codes, for a generator to train on",
    "evaluate": "compare samples, in files or from a model, with real images",
    "evaluate-text": "measure whether samples of a model show what captions say",
    "evaluate-tokenizer": "measure how well a tokenizer reconstructs images",
    "study": "run the paper's studies and comparisons, with table and figure",
    "reconstruct": "show images beside their reconstructions",
    "info": "describe a model: shape, parameters, classes",
    "convert": "convert an official checkpoint to an aimamba folder",
}

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")  # as torch words it


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``aimamba``.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit status.
    """
    with usable_streams():
        return _run(sys.argv[1:] if argv is None else list(argv))


def _run(argv: list[str]) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _dispatch(argv)
        sys.stdout.flush()
        return 0
    except AimambaError as error:
        _report(str(error))
        return 2
    except KeyboardInterrupt as error:
        _report(str(error) or "stopped")
        return getattr(error, "exit_code", 130)
    except BrokenPipeError:
        to_nowhere(sys.stdout)  # the reader of our output has gone
        return 141
    except OSError as error:
        if error.strerror is None:  # not from the operating system: a bug, which keeps its traceback
            raise
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        advice = "make room and run the same command again" if full else "check the path and its permissions"
        _report(f"{place}{error.strerror}; {advice}")
        return 2
    except Exception as error:
        if _was_interrupted(error):
            _report("stopped")
            return 130
        if _is_out_of_memory(error):
            _report(f"out of memory{_device_of(error)}; use a smaller batch (--batch-size), image size or model")
            return 2
        raise


def _was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: modules in C that it meets while they are imported make another one of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, numpy or torch, on any device, had no memory left."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # torch's, without importing it
    said = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or named or said


def _device_of(error: Exception) -> str:
    return next((f" on {name}" for name in ("CUDA", "MPS") if name in str(error)), "")


def _dispatch(argv: list[str]) -> None:
    if argv and argv[0] == "help":
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    if argv[0] in ("-V", "--version"):
        print(f"aimamba {__version__}")
        return
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}{suggest(name, COMMANDS)}; expected one of {', '.join(COMMANDS)}")
    command = import_module(f"aimamba.cli.{name.replace('-', '_')}")
    parser = Parser(prog=f"aimamba {name}", description=command.__doc__)
    command.add_arguments(parser)
    arguments = parser.parse_args(rest)
    arguments.typed = [name, *rest]
    command.run(arguments)


def _report(message: str) -> None:
    line = printable(" ".join(message.splitlines()))
    print(f"aimamba: {line}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _report(str(message))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: aimamba COMMAND [OPTIONS]",
            "",
            "Autoregressive image generation with Mamba-2.",
            "",
            *lines,
            "",
            "'aimamba help COMMAND' lists the options of a command.",
        ]
    )
