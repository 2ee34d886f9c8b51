"""The table of docs/scale.md: memory and hours of the paper's four sizes on 8, 16 and 32 GPUs.

``python -m benchmarks.scale`` prints it. Nothing is measured: ``aimamba.train.plan.plan`` computes it.
"""

import argparse
from collections.abc import Iterable, Iterator

from aimamba.train.plan.cards import CARDS, GIB
from aimamba.train.plan.plan import Plan, make_plan
from aimamba.train.recipe import load_recipe

SHARDS = {"aim-b": 1, "aim-l": 1, "aim-xl": 8, "aim-1b": 8}
GPUS = (8, 16, 32)
HEAD = (
    "| | GPUs | sharded over | images at once | weights and moments | activations | most at once | hours |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)


def rows(names: Iterable[str], counts: Iterable[int], card: str) -> Iterator[str]:
    """Yield a row of the table for each size and number of GPUs."""
    for name in names:
        for gpus in counts:
            plan = make_plan(load_recipe(f"{name}-imagenet256"), gpus=gpus, card=CARDS[card], shard=SHARDS[name])
            yield row(name, plan)


def row(name: str, plan: Plan) -> str:
    """Return a row of the table."""
    memory, at_once = plan.chosen.memory, str(plan.chosen.at_once)
    if plan.accumulation > 1:
        at_once += f", {plan.accumulation} parts"
    held = memory.parameters + memory.gradients + memory.optimizer + memory.average + memory.narrow
    assert plan.hours is not None
    hours = f"{plan.hours:.0f}" if plan.hours >= 10 else f"{plan.hours:.1f}"
    sizes = " | ".join(f"{size / GIB:.1f}" for size in (held, memory.activations, memory.total))
    return f"| {name} | {plan.gpus} | {plan.shard} | {at_once} | {sizes} | {hours} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100-80gb", choices=CARDS)
    arguments = parser.parse_args()
    for line in (*HEAD, *rows(SHARDS, GPUS, arguments.gpu)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
