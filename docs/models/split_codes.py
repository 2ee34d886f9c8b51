"""Split every code of a model into several: how codebooks of 2,048 codes grew to 8,192.

    python docs/models/split_codes.py avatars-64 runs/avatars-64-split --into 4

A code's vector becomes several that lie close together, for training to move apart (as in Linde, Buzo and Gray's
algorithm, 1980). The generator gives each of them an equal share of the code's probability, and reads each as the code.
So images are what they were, and training goes on from there, first of the tokenizer and then of the generator.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from aimamba import AiM, Pipeline, VQModel
from aimamba.seeds import seeded

_APART = 0.02  # deviation of the new vectors, whose length is 1, in each direction


def main() -> None:
    """Load, split, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pipeline with a codebook whose vectors have length 1")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--into", type=int, default=4, metavar="N", help="codes that each becomes (default 4)")
    arguments = parser.parse_args()
    before = Pipeline.from_pretrained(arguments.model)
    tokenizer = split_tokenizer(before.tokenizer, arguments.into)
    generator = split_generator(before.generator, arguments.into, tokenizer)
    Pipeline(tokenizer, generator, before.class_names, before.vocabulary).save_pretrained(arguments.out)


def split_tokenizer(before: VQModel, parts: int) -> VQModel:
    """Return a tokenizer in which code k has become the codes from ``parts * k`` on."""
    tokenizer = VQModel(replace(before.config, codebook_size=parts * before.config.codebook_size))
    weights = before.state_dict()
    codebook = weights["codebook"].float().repeat_interleave(parts, dim=0)
    noise = torch.randn(codebook.shape, generator=seeded(0))
    weights["codebook"] = F.normalize(codebook + _APART * noise, dim=-1)
    tokenizer.load_state_dict(weights)
    return tokenizer


def split_generator(before: AiM, parts: int, tokenizer: VQModel) -> AiM:
    """Return a generator of those codes."""
    config = replace(before.config, vocab_size=parts * before.config.vocab_size, tokenizer=tokenizer.code_fingerprint())
    generator, weights = AiM(config), before.state_dict()
    weights["word_embedding.weight"] = weights["word_embedding.weight"].repeat_interleave(parts, dim=0)
    generator.load_state_dict(weights)
    return generator


if __name__ == "__main__":
    main()
