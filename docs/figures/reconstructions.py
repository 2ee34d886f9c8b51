"""Draw held-out avatars, one of each style, above what tokenizers make of them.

python docs/figures/reconstructions.py OUT.png [--styles STYLE,STYLE,...] NAME=MODEL [NAME=MODEL ...]

The cards and docs/fine-tuning-tokenizer.md name the commands of their pictures.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aimamba.data import Avatars
from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8
from aimamba.models import VQModel
from aimamba.pipeline import Pipeline

SIDE, SHOWN = 64, 128  # pixels


def main() -> None:
    """Reconstruct with each tokenizer and write a sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--styles", help="separated by commas; by default those of avatars-64")
    parser.add_argument("--shown", type=int, default=SHOWN, metavar="PIXELS", help="side of a picture on the sheet")
    arguments = parser.parse_args()
    named = arguments.styles.split(",") if arguments.styles else Pipeline.from_pretrained("avatars-64").class_names
    avatars = Avatars(SIDE, "held-out", 1, named)
    pixels = torch.from_numpy(np.stack([avatars.image(index) for index in range(len(avatars))])).permute(0, 3, 1, 2)
    rows = {"original": pixels}
    for argument in arguments.models:
        name, _, place = argument.partition("=")
        model = VQModel.from_pretrained(place)
        with torch.no_grad():
            rows[name] = to_uint8(model.decode(model.encode(to_float(pixels))))
    size = (arguments.shown, arguments.shown)
    images = [[image.resize(size, Image.Resampling.NEAREST) for image in to_pil(row)] for row in rows.values()]
    sheet(images, row_names=list(rows), column_names=avatars.class_names).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
