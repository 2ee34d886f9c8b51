"""Give a generator of captions a table of phrases (``text.ngrams``) of zeros: images stay what they were.

    python docs/models/add_phrases.py emoji-64 runs/emoji-64-phrases --rows 8192

Training goes on from there, as in the recipe ``emoji-64-text-longer``.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from aimamba import AiM, Pipeline


def main() -> None:
    """Load, add the table, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pipeline whose generator takes captions, without phrases")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--rows", type=int, default=8192, metavar="N", help="rows of the table (default 8192)")
    arguments = parser.parse_args()
    before = Pipeline.from_pretrained(arguments.model)
    generator = with_phrases(before.generator, arguments.rows)
    Pipeline(before.tokenizer, generator, before.class_names, before.vocabulary).save_pretrained(arguments.out)


def with_phrases(before: AiM, rows: int) -> AiM:
    """Return a copy with a table of ``rows`` phrases, all zero."""
    text = before.config.text
    if text is None or text.ngrams:
        raise SystemExit("the generator takes no captions, or has a table of phrases already")
    generator, weights = AiM(replace(before.config, text=replace(text, ngrams=rows))), before.state_dict()
    weights["condition.text.ngrams.weight"] = torch.zeros(rows, before.config.width)
    generator.load_state_dict(weights)
    return generator


if __name__ == "__main__":
    main()
