"""Plan a training on one or many GPUs: memory, the largest batch, hours, and the command to run.

Nothing is trained or downloaded, no GPU is needed, and images and codes need not be there. The numbers of a GPU are
computed for bfloat16 autocast (float32 where fit.precision says so); docs/scale.md says how they were checked. Hours
assume that no GPU ever waits for another one.
"""

import argparse
import json
from typing import TYPE_CHECKING

from aimamba.cli.arguments import Parser
from aimamba.config import check
from aimamba.errors import ConfigError, counted

if TYPE_CHECKING:
    from aimamba.train.parallel.layout import ParallelConfig
    from aimamba.train.plan.plan import Choice, Plan

_PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "average": "moving average",
    "narrow": "weights for the products",
    "activations": "activations, logits",
}

_OPTIONS = {
    "data": "data.source",
    "init": "init",
    "size": "data.size",
    "steps": "fit.steps",
    "batch_size": "fit.batch_size",
}
_CHOSEN = "fit.accumulation", "task.checkpointing", "parallel.shard", "parallel.replicate"  # by the plan


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("recipe", metavar="RECIPE", help="name of a packaged recipe, or path of a .toml file")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs")
    parser.add_argument("--gpu", metavar="NAME", help="their kind, such as a100-80gb (default: h100-80gb)")
    parser.add_argument("--memory", metavar="AMOUNT", help="memory of a GPU that is not known, as in 48GB or 44.4GiB")
    parser.add_argument(
        "--shard",
        type=int,
        metavar="S",
        help="split weights, gradients and moments over S GPUs (default: parallel.shard of the recipe, or 1)",
    )
    parser.add_argument(
        "--tokens-per-second", type=float, metavar="X", help="codes a second of one GPU, instead of what is known"
    )
    parser.add_argument("--data", metavar="SET", help="as for 'aimamba train'; it is not opened")
    parser.add_argument("--init", metavar="MODEL", help="as for 'aimamba train'; of a model that is here, the shape")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, help="number of weight updates")
    parser.add_argument("--batch-size", type=int, help="images per update, of all GPUs together")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change any setting, as for 'aimamba train'"
    )


def run(arguments: argparse.Namespace) -> None:
    """Compute the plan and print it."""
    from aimamba.cli.output import print_line
    from aimamba.train.plan.cards import find_card
    from aimamba.train.plan.plan import command, make_plan
    from aimamba.train.recipe import load_recipe

    card = find_card(arguments.gpu, arguments.memory)
    overrides, options = _overrides(arguments)
    recipe = load_recipe(arguments.recipe, overrides)
    shard = _shard(arguments, recipe.parallel)
    plan = make_plan(
        recipe,
        gpus=arguments.gpus,
        card=card,
        shard=shard,
        tokens_per_second=arguments.tokens_per_second,
    )
    for line in [*_described(arguments.recipe, plan), "", command(plan, arguments.recipe, options)]:
        print_line(line)


def _shard(arguments: argparse.Namespace, parallel: "ParallelConfig") -> int:
    """Return over how many GPUs a copy is split, by ``--shard`` or the recipe.

    Raises:
        ConfigError: They contradict each other.
    """
    gpus, left = arguments.gpus, parallel.shard or 1
    if parallel.shard is None and parallel.replicate is not None and gpus % parallel.replicate == 0:
        left = gpus // parallel.replicate
    shard = int(left if arguments.shard is None else arguments.shard)
    for name, made in (("shard", shard), ("replicate", gpus // max(1, shard))):
        given = getattr(parallel, name)
        check(
            given in (None, made),
            f"parallel.{name} = {given}, but {gpus} GPUs with --shard {shard} make it {made}; give one of them",
        )
    return shard


def _overrides(arguments: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """Return the changed settings by dotted name, and the options of ``aimamba train`` that change them."""
    overrides: dict[str, str] = {}
    options: list[str] = []
    for option, key in _OPTIONS.items():
        value = getattr(arguments, option)
        if value is not None:
            options += [f"--{option.replace('_', '-')}", str(value)]
            if option != "data":
                overrides[key] = json.dumps(value, ensure_ascii=False)
    for setting in arguments.set:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set expects KEY=VALUE, as in fit.steps=500, got {setting!r}")
        if key.strip() not in _CHOSEN:
            options += ["--set", setting]
        overrides[key.strip()] = value.strip()
    overrides["fit.accumulation"] = "1"
    return overrides, options


def _described(recipe: str, plan: "Plan") -> list[str]:
    from aimamba.train.plan.cards import GIB
    from aimamba.train.plan.plan import usable

    of, card = plan.outline, plan.card
    lines = [
        f"{recipe}: {of.parameters:,} parameters, {of.tokens:,} codes an image",
        f"{plan.gpus} x {card.name}: {card.memory / GIB:.1f} GiB each, of which {usable(card) / GIB:.1f} are planned "
        f"with; sharded over {plan.shard}",
        *(f"note: {note}" for note in of.notes),
        "",
    ]
    kept = ["computed again" if choice.checkpointing else "kept" for choice in plan.choices]
    rows = [("GiB of a GPU; activations are", kept)]
    for name, title in _PARTS.items():
        rows.append((title, [f"{getattr(choice.memory, name) / GIB:.2f}" for choice in plan.choices]))
    rows.append(("most at once", [f"{choice.memory.total / GIB:.2f}" for choice in plan.choices]))
    rows.append(("images at once, here", [_at_once(choice) for choice in plan.choices]))
    rows.append(("images at once, at most", [str(choice.largest or "none fits") for choice in plan.choices]))
    width = max(len(title) for title, _ in rows)
    lines += [f"{title:<{width}}" + "".join(f"  {value:>14}" for value in values) for title, values in rows]
    images = plan.steps * plan.batch
    parts = f" in {plan.accumulation} parts" if plan.accumulation > 1 else ""
    lines += [
        "",
        f"{plan.steps:,} steps of {plan.batch:,} images, {plan.batch // plan.gpus:,} a GPU{parts}: {images:,} images, "
        f"{images * of.tokens:,} codes",
    ]
    if plan.hours is None or plan.rate is None:
        return [*lines, "hours: nothing was measured to go by; give --tokens-per-second, the codes of one GPU"]
    rate = f"{plan.rate.tokens_per_second:,.0f} codes a second of one GPU ({plan.rate.source})"
    again = ", a third longer for what is computed again" if plan.chosen.checkpointing else ""
    lines.append(f"{_duration(plan.hours)} at {rate}{again}")
    if plan.gpus > 1 and plan.rate.recorded:
        lines.append(
            "note: several processes cannot record a CUDA graph, so parts that take a GPU less than about 2.5 ms "
            "a block wait for Python"
        )
    return lines


def _at_once(choice: "Choice") -> str:
    return str(choice.at_once) if choice.at_once else "none fits"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    minutes = 60 * hours
    return counted(round(minutes), "minute") if minutes >= 1 else "less than a minute"
