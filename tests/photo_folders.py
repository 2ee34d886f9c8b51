"""A folder of images, for the tests of everything that reads one."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, classes: tuple[str, ...], number: int, *, width: int, height: int) -> Path:
    """Write ``number`` random images into a sub-folder for each class: 0.png, 1.png, ...; return the folder."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for image in range(number):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image}.png")
    return folder
