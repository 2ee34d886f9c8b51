"""Plot the training curves of a packaged model from the metrics of its runs.

python docs/figures/training_curves.py docs/models/avatars-64 docs/figures/avatars-64-curves.png

The folder holds the ``metrics.jsonl`` of its runs: ``tokenizer``, ``decoder``, ``generator``, and those that followed.
"""

import json
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt

INK, FIRST, SECOND, THIRD, FOURTH, FIFTH = "#404040", "#1f6f8b", "#d1495b", "#66a182", "#8d6a9f", "#c98b2d"


def read(path: Path, split: str, name: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one metric."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [(line["step"], line[name]) for line in lines if line["split"] == split and line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def main(folder: Path, out: Path) -> None:
    """Plot three panels: PSNR, perceptual distance, and the generator's loss."""
    plt.rcParams |= {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 9}
    figure, panels = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
    whole, alone = (FIRST, "whole tokenizer"), (SECOND, "decoder only")
    tokenizer = {"tokenizer": whole, "decoder": alone, "tokenizer-details": (FIRST, "")}
    generator = {
        "generator": (FIRST, "30,000 avatars"),
        "generator-fresh": (SECOND, "30,000 others"),
        "generator-details": (THIRD, "60,000, new codes"),
        "generator-vectors": (FOURTH, "60,000 others"),
        "generator-split": (FIFTH, "8,192 codes"),
    }
    further = {
        "decoder-details": (SECOND, ""),
        "tokenizer-split": (FIFTH, "8,192 codes"),
        "decoder-split": (SECOND, ""),
    }
    for panel, name, title, stages in (
        (panels[0], "psnr", "PSNR, held out (dB)", tokenizer | further),
        (panels[1], "perceptual", "perceptual distance at 64 pixels", tokenizer),
        (panels[2], "bits_per_token", "generator, bits per token (pale: in training)", generator),
    ):
        start = 0
        for stage, (colour, label) in stages.items():
            path = folder / f"{stage}.jsonl"
            steps, values = read(path, "held-out", name)
            panel.plot([start + step for step in steps], values, ".-", color=colour, label=label or None)
            if panel is panels[2]:
                steps, nats = read(path, "train", "loss")
                bits = [value / math.log(2) for value in nats]
                panel.plot([start + step for step in steps], bits, color=colour, alpha=0.4)
            start += steps[-1]
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("step")
        panel.legend(frameon=False)
    panels[2].set_ylim(1.5, 7.5)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.2)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
