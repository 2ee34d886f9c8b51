"""Compare the ways to draw masked tokens again, on held-out avatars: ``python -m benchmarks.inpainting --help``.

For each method: the mean log-likelihood of the known tokens that follow the mask's first one, given what was drawn and
the class; how smooth pixels are across the mask's edge; and seconds an image. The seam is the mean absolute difference
of neighbouring pixels on both sides of the edge, divided by the same difference of the tokenizer's reconstruction of
the original: 1 is as smooth as if nothing had been drawn.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aimamba.data import Avatars, sheet, to_pil
from aimamba.generation import SamplingConfig
from aimamba.generation.inpainting import METHODS, inpaint
from aimamba.pipeline import Pipeline

MASKS = {"middle": (2, 6, 2, 6), "left half": (0, 8, 0, 4), "top half": (0, 4, 0, 8)}  # of the grid's eighths
_GREY = 127


def make_mask(pipeline: Pipeline, name: str) -> Tensor:
    """Return a mask (h, w) of tokens."""
    top, bottom, left, right = (part * pipeline.grid // 8 for part in MASKS[name])
    mask = torch.zeros(pipeline.grid, pipeline.grid, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def fit_of_the_rest(pipeline: Pipeline, codes: Tensor, labels: Tensor, mask: Tensor) -> float:
    """Return the mean log-likelihood (nats a token) of the known tokens after the mask's first one."""
    later = ~mask.flatten() & (torch.arange(mask.numel()) > int(mask.flatten().nonzero()[0]))
    return -math.log(2) * float(pipeline.bits(codes, labels).cpu()[:, later].mean())


def roughness(images: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute difference of pixels across the edge of the mask, for each image."""
    patch = images.shape[-1] // mask.shape[0]
    inside = mask.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    pixels = images.double()
    steps = []
    for axis in (0, 1):
        edge = inside.diff(dim=axis)
        steps.append(pixels.diff(dim=axis - 2).abs().mean(dim=1)[:, edge])
    return torch.cat(steps, dim=1).mean(dim=1)


def main() -> None:
    """Measure, print a table, and write a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="avatars-64")
    parser.add_argument("--per-class", type=int, default=2, help="held-out avatars of each class (default 2)")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--figure", type=Path, help="write originals, holes and drawings to this PNG")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pipeline = Pipeline.from_pretrained(arguments.model)
    avatars = Avatars(pipeline.image_size, "held-out", arguments.per_class)
    labels = torch.tensor([pipeline.label(avatars.class_names[label]) for label in avatars.labels])
    originals = torch.from_numpy(np.stack([avatars.image(i) for i in range(len(avatars))])).permute(0, 3, 1, 2)
    codes = pipeline.encode(originals)
    decoded = pipeline.decode(codes)
    found, shown = [], {}
    for name in MASKS:
        mask = make_mask(pipeline, name)
        usual = roughness(decoded, mask)
        fit = fit_of_the_rest(pipeline, codes, labels, mask)
        found.append({"mask": name, "method": "original", "fit": fit, "seam": 1.0})
        for method in METHODS:
            start, parts = time.perf_counter(), []
            for i in range(0, len(codes), 4):
                part = slice(i, i + 4)
                *_, drawn = inpaint(
                    pipeline.generator, labels[part], SamplingConfig(), codes=codes[part],
                    mask=mask.flatten().expand(len(codes[part]), -1), seeds=range(i, i + len(codes[part])),
                    method=method, candidates=arguments.candidates, engine=pipeline.prepare(),
                )  # fmt: skip
                parts.append(drawn)
            seconds = (time.perf_counter() - start) / len(codes)
            drawn = torch.cat(parts)
            images = pipeline.decode(drawn)
            row = {
                "mask": name,
                "method": method,
                "fit": fit_of_the_rest(pipeline, drawn, labels, mask),
                "seam": float((roughness(images, mask) / usual.clamp(min=1)).mean()),
                "seconds": seconds,
            }
            found.append(row)
            shown[name, method] = to_pil(images)
    print(f"{'mask':<10} {'method':<10} {'nats a token':>12} {'seam':>6} {'s':>7}")
    for row in found:
        seconds = f"{row['seconds']:.2f}" if "seconds" in row else ""
        print(f"{row['mask']:<10} {row['method']:<10} {row['fit']:>12.3f} {row['seam']:>6.3f} {seconds:>7}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"candidates": arguments.candidates, "rows": found}, indent=2) + "\n")
    if arguments.figure is not None:
        chosen = range(0, len(codes), arguments.per_class)
        name = "middle"
        patch = pipeline.tokenizer.config.downsampling
        inside = make_mask(pipeline, name).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
        rows = [to_pil(originals), to_pil(originals.masked_fill(inside, _GREY))]
        rows += [shown[name, method] for method in METHODS]
        made = sheet([[row[i] for i in chosen] for row in rows], row_names=["held-out image", "hole", *METHODS])
        made.save(arguments.figure)


if __name__ == "__main__":
    main()
