"""Show samples before and after guidance distillation: the same captions and seeds.

python docs/figures/distillation.py avatars-64-text runs/distill docs/figures/distillation.png

Rows are three captions, each with the first model without and with guidance and with the second without.
"""

import argparse
from pathlib import Path

from aimamba import Pipeline, SamplingConfig
from aimamba.data import sheet

CAPTIONS = (
    "a green critter with one eye and its tongue out on a purple background",
    "a yellow robot with teal lights and two antennas",
    "a pink planet with a ring and two moons",
)
COLUMNS = 8


def main() -> None:
    """Sample and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="the model whose guidance was distilled")
    parser.add_argument("after", help="the model that has learned it")
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--cfg-scale", type=float, default=3.0, help="the scale of guidance (default: 3)")
    arguments = parser.parse_args()
    before, after = map(Pipeline.from_pretrained, (arguments.before, arguments.after))
    guided = SamplingConfig(cfg_scale=arguments.cfg_scale)
    ways = {
        "no guidance": (before, SamplingConfig()),
        f"guidance {arguments.cfg_scale:g}": (before, guided),
        "distilled, no guidance": (after, SamplingConfig()),
    }
    rows, names = [], []
    for caption in CAPTIONS:
        for name, (pipeline, sampling) in ways.items():
            rows.append(pipeline(prompts=[caption], n=COLUMNS, config=sampling))
            names.append(name)
    sheet(rows, row_names=names).save(arguments.out)


if __name__ == "__main__":
    main()
