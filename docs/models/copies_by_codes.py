"""Print whether samples of a model have the codes of training images: the evidence in the cards of shipped weights.

    python docs/models/copies_by_codes.py [MODEL] [-n N] [--train SET] [--held-out SET]

Compares samples of all classes, and held-out images beside them, with training images and their mirror images, code by
code. It needs no network of features; ``aimamba evaluate --model`` prints the same lines among its numbers.
"""

import argparse

from aimamba.evaluation.codes import compare_codes, encode_source
from aimamba.evaluation.sources import ModelSource, make_labels, open_source
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline


def main() -> None:
    """Sample, encode, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="avatars-64")
    parser.add_argument("-n", type=int, default=500, help="samples (default 500)")
    parser.add_argument("--train", default="avatars-64:train:200", help="training images")
    parser.add_argument("--held-out", default="avatars-64:held-out:50", help="held-out images")
    parser.add_argument("--cfg-scale", type=float, default=1.5)
    parser.add_argument("--temperature", type=float, default=0.8)
    arguments = parser.parse_args()
    pipeline = Pipeline.from_pretrained(arguments.model)
    config = SamplingConfig(cfg_scale=arguments.cfg_scale, temperature=arguments.temperature)
    labels = make_labels("balanced", arguments.n, pipeline.generator.config.num_classes)
    samples = ModelSource(arguments.model, pipeline, labels, config, 64)
    train, held_out = (
        open_source(name, default_size=pipeline.image_size, progress=True)
        for name in (arguments.train, arguments.held_out)
    )
    learned = encode_source(train, pipeline, mirrored=True, progress=True).flatten(0, 1)
    unseen = encode_source(held_out, pipeline, progress=True)[:, 0]
    found = compare_codes(samples.codes, unseen, learned)
    print(f"{len(samples)} samples ({config.describe()}) and {len(held_out)} held-out images against {len(train)} of")
    print(f"{train.name} and their mirror images, {found.codes} codes each:")
    print(f"all codes equal   samples {found.equal:.1%}, held-out {found.equal_held_out:.1%}")
    differing = f"samples {found.differing:g}, held-out {found.differing_held_out:g}"
    print(f"codes that differ from the nearest, median   {differing}")


if __name__ == "__main__":
    main()
