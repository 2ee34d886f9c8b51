"""Train a tokenizer or a generator.

RECIPE is the name of a packaged recipe or the path of a .toml file. Recipe, metrics, sample sheets, checkpoint and the
finished model are written to the folder of the run. The same command continues a run that was stopped. Several GPUs
train one model with --devices or under torchrun: torchrun --nproc-per-node 8 -m aimamba train ...
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from aimamba.cli.arguments import Parser
from aimamba.cli.many import add_devices, started
from aimamba.data import spec
from aimamba.errors import ConfigError, counted, printable

_FLAGS = {
    "data": "data.source",
    "size": "data.size",
    "strict": "data.strict",
    "workers": "data.workers",
    "init": "init",
    "tokenizer": "task.tokenizer",
    "steps": "fit.steps",
    "batch_size": "fit.batch_size",
    "lr": "fit.lr",
    "seed": "fit.seed",
}


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="name of a packaged recipe, or path of a .toml file"
    )
    parser.add_argument("--list", action="store_true", help="list the packaged recipes")
    parser.add_argument("--show", metavar="RECIPE", help="print a recipe, to copy and change")
    parser.add_argument("--settings", action="store_true", help="print all settings of a recipe, with their defaults")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--data", metavar="SET", help="a set of images, see below, or a folder of codes")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--tokenizer", metavar="MODEL", help="tokenizer of a generator: a run, a model or a hub id")
    parser.add_argument("--steps", type=int, help="number of weight updates")
    parser.add_argument("--batch-size", type=int, help="images per update")
    parser.add_argument("--lr", type=float, help="highest learning rate")
    parser.add_argument("--seed", type=int, help="seed of weights, image order and dropout")
    parser.add_argument("--init", metavar="MODEL", help="start from the weights and the shape of this model")
    parser.add_argument("--strict", action="store_true", default=None, help="stop at the first unreadable image")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change any setting, as in fit.ema_decay=0.999"
    )
    parser.add_argument(
        "--workers", type=int, help="processes that decode a tokenizer's images ahead (default 0: none)"
    )
    parser.add_argument("--quiet", action="store_true", help="print the result and warnings alone")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files to DIR/tensorboard")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    add_devices(parser)


def run(arguments: argparse.Namespace) -> None:
    """Load the recipe, prepare the task and train; or print what was asked for."""
    from aimamba.cli.output import output_folder, print_line
    from aimamba.config import to_mapping
    from aimamba.devices import resolve_device
    from aimamba.distributed import Team, find_place, one_voice, own_device
    from aimamba.train.fit import fit
    from aimamba.train.parallel.layout import check_shares, find_layout
    from aimamba.train.recipe import load_recipe, recipe_names
    from aimamba.train.stages import make_task, resolved

    if arguments.list or arguments.show is not None or arguments.settings:
        _print_reference(arguments)
        return
    if arguments.recipe is None:
        raise ConfigError(
            f"train: no recipe given; expected the path of a .toml file or one of {', '.join(recipe_names())} "
            "(--list describes them)"
        )
    if started(arguments):
        return
    place = find_place()  # among the processes that torchrun has started
    with one_voice(place):
        device = resolve_device(arguments.device) if place is None else own_device(arguments.device, place)
        recipe = load_recipe(arguments.recipe, _overrides(arguments))
        typed = sys.argv[1:] if sys.argv[1:2] == ["train"] else ["train", arguments.recipe]
        layout = find_layout(recipe.parallel, 1 if place is None else place.size, typed)
        if place is not None:
            check_shares(recipe.fit, place.size)
        out = output_folder(arguments.out or Path("runs") / Path(arguments.recipe).stem)
    quiet = arguments.quiet or (place is not None and place.rank > 0)
    log = _ignore if quiet else _log
    with contextlib.ExitStack() as stack:
        team = None
        if place is not None:
            advice = f"the same command goes on from the last checkpoint in {out}"
            team = stack.enter_context(Team(place, device, timeout=recipe.parallel.timeout, advice=advice))
        result = fit(
            lambda: make_task(recipe, device=device, codes=out / "codes", log=log, progress=not quiet),
            recipe.fit,
            out,
            device=device,
            recipe=resolved(to_mapping(recipe)),
            resolve=resolved,
            tensorboard=arguments.tensorboard,
            quiet=quiet,
            team=team,
            layout=layout,
        )
    if place is not None and place.rank > 0:
        return
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    taken = f"step {result.step} of {result.steps}, the best"
    if result.step == result.steps:
        taken = counted(result.steps, "step")
    print_line(f"{result.model}: {taken}, held out: {numbers}")


def _print_reference(arguments: argparse.Namespace) -> None:
    """Print the list of recipes, one of them, or all settings."""
    from aimamba.cli.output import print_table
    from aimamba.train.recipe import load_recipe, recipe_names, recipe_text

    asked = [option for option in ("list", "show", "settings") if getattr(arguments, option) not in (False, None)]
    if len(asked) > 1 or arguments.recipe is not None:
        other = f"--{asked[1]}" if len(asked) > 1 else arguments.recipe
        raise ConfigError(f"train: --{asked[0]} stands alone, got {other} too; give one of them")
    if arguments.list:
        print_table([(name, load_recipe(name).description) for name in recipe_names()])
    elif arguments.settings:
        from aimamba.train.reference import settings_page

        print(settings_page(), end="")
    else:
        print(recipe_text(arguments.show), end="")


def _ignore(_line: str) -> None:
    pass


def _log(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return settings by dotted name: those of the flags, overridden by ``--set``."""
    given = {key: value for flag, key in _FLAGS.items() if (value := getattr(arguments, flag)) is not None}
    if arguments.data is not None:  # a recipe's limits are for its own images
        given |= {
            "data.per_class": None,
            "data.held_out_per_class": None,
            "data.skip_per_class": 0,
            "data.variants": None,
        }
    overrides = {key: _quoted(value) if isinstance(value, str) else value for key, value in given.items()}
    for setting in arguments.set:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set expects KEY=VALUE, as in fit.steps=500, got {setting!r}")
        overrides[key.strip()] = value.strip()
    return overrides


def _quoted(text: str) -> str:
    """Return a text as a TOML string, so that a folder called 2024 or true stays a text.

    Raises:
        ConfigError: It has bytes outside UTF-8, which no recipe can record.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"train: {text!r} is not valid UTF-8, so recipe.toml cannot record it; rename the folder or file"
        ) from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
