"""Draw originals above what three tokenizers make of them: ``avatars-64``, its fine-tuned decoder, and all of it.

``python docs/figures/finetuned_tokenizer.py runs/decoder runs/all``, after the commands of
docs/fine-tuning-tokenizer.md. The first eight styles are those of the fine-tuning, the others those of ``avatars-64``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aimamba.data import Avatars
from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8
from aimamba.models import VQModel

NEW = ("adventurer", "avataaars", "big-smile", "bottts", "fun-emoji", "lorelei", "micah", "personas")
OLD = ("critters", "sprouts", "planets", "pixel-art")
SIDE, SHOWN = 64, 96  # pixels


def main(decoder: str, everything: str) -> None:
    """Write ``finetuned-tokenizer.png`` beside this file."""
    avatars = Avatars(SIDE, "held-out", 1, NEW + OLD)
    pixels = torch.from_numpy(np.stack([avatars.image(index) for index in range(len(avatars))])).permute(0, 3, 1, 2)
    rows = {"original": pixels}
    for name, place in {"avatars-64": "avatars-64", "decoder only": decoder, "all of it": everything}.items():
        model = VQModel.from_pretrained(place)
        with torch.no_grad():
            rows[name] = to_uint8(model.decode(model.encode(to_float(pixels))))
    images = [
        [image.resize((SHOWN, SHOWN), Image.Resampling.NEAREST) for image in to_pil(row)] for row in rows.values()
    ]
    page = sheet(images, row_names=list(rows), column_names=avatars.class_names)
    page.quantize(256).save(Path(__file__).with_name("finetuned-tokenizer.png"), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
