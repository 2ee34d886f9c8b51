"""Train a tokenizer or a generator by a recipe.

RECIPE is the name of a packaged recipe or the path of a .toml file. The run's folder gets its recipe, metrics, sample
sheets, a checkpoint and at last the model; the same command continues a run that was stopped.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from aimamba.cli.arguments import Parser
from aimamba.errors import ConfigError

_FLAGS = {"data": "data.source", "tokenizer": "task.tokenizer", "steps": "fit.steps", "batch_size": "fit.batch_size"}
_FLAGS |= {"lr": "fit.lr", "seed": "fit.seed", "strict": "data.strict"}


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--data", metavar="FOLDER", help="folder with a sub-folder of pictures for each class")
    parser.add_argument("--tokenizer", metavar="MODEL", help="whose codes a generator learns")
    parser.add_argument("--steps", type=int, help="updates of the weights")
    parser.add_argument("--batch-size", type=int, help="pictures an update")
    parser.add_argument("--lr", type=float, help="highest learning rate")
    parser.add_argument("--seed", type=int, help="of weights, order and dropout")
    parser.add_argument("--strict", action="store_true", default=None, help="stop at the first broken picture")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as fit.ema_decay=0.999"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")


def run(arguments: argparse.Namespace) -> None:
    """Resolve the recipe, prepare the stage, train."""
    from aimamba.config import to_mapping
    from aimamba.models.placement import resolve_device
    from aimamba.train.fit import fit
    from aimamba.train.recipe import load_recipe
    from aimamba.train.stages import make_task

    overrides: dict[str, Any] = {
        key: value for flag, key in _FLAGS.items() if (value := getattr(arguments, flag)) is not None
    }
    for setting in arguments.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set expects KEY=VALUE, as in fit.steps=500, got {setting!r}")
        overrides[key.strip()] = value.strip()
    device = resolve_device(arguments.device)
    recipe = load_recipe(arguments.recipe, overrides)
    out = arguments.out or Path("runs") / Path(arguments.recipe).stem
    task = make_task(recipe, device=device, say=lambda line: print(line, file=sys.stderr))
    result = fit(task, recipe.fit, out, device=device, recipe=to_mapping(recipe))
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    print(f"{result.model}: {result.steps} steps, held out: {numbers}")
