"""Write a pipeline as the package holds it: in half precision, encoder and codebook too.

    python docs/models/pack.py runs/avatars-64-aim-split avatars-64 --tokenizer runs/avatars-64-decoder-split

``aimamba convert --dtype float16`` leaves what decides the codes in float32. Here it is rounded, which changes a few
codes (the script prints how many) and takes 7 MB less. The generator gets the fingerprint of the rounded tokenizer.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aimamba import AiM, Pipeline, VQModel
from aimamba.data.sheets import to_float
from aimamba.evaluation.sources import open_source


def main() -> None:
    """Load, round, compare codes, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pipeline, or a run of a generator")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", help="its tokenizer, where that was trained further")
    parser.add_argument("--images", default="avatars-64:held-out:50", help="images whose codes are compared")
    arguments = parser.parse_args()
    before = Pipeline.from_pretrained(arguments.model, tokenizer=arguments.tokenizer)
    tokenizer = rounded_tokenizer(before.tokenizer)
    generator = rounded_generator(before.generator, tokenizer)
    print(f"{changed_codes(before.tokenizer, tokenizer, arguments.images):.2%} of the codes change")
    Pipeline(tokenizer, generator, before.class_names, before.vocabulary).save_pretrained(arguments.out)


def rounded_tokenizer(before: VQModel) -> VQModel:
    """Return a copy in half precision."""
    return copy.deepcopy(before).half()


def rounded_generator(before: AiM, tokenizer: VQModel) -> AiM:
    """Return a copy in half precision that knows the rounded tokenizer as its own."""
    generator = AiM(replace(before.config, tokenizer=tokenizer.code_fingerprint()))
    generator.load_state_dict(before.state_dict())
    return generator.cast(torch.float16)


@torch.no_grad()
def changed_codes(before: VQModel, after: VQModel, images: str) -> float:
    """Return the share of the codes of some images that differ, computed in float32."""
    after = copy.deepcopy(after).float()
    different = total = 0
    for batch in open_source(images, progress=True).batches(50):
        pixels = to_float(torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2))
        one, two = before.encode(pixels), after.encode(pixels)
        different, total = different + int((one != two).sum()), total + one.numel()
    return different / total


if __name__ == "__main__":
    main()
