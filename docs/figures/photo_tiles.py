"""Cut photographs that come with scikit-image and scikit-learn into tiles of 64 pixels, a class for each photograph.

``python docs/figures/photo_tiles.py FOLDER``, after ``pip install scikit-image scikit-learn``.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

SIDE, LONGEST = 64, 640  # pixels, of a tile and of a photograph
PHOTOS = {
    "skimage": "data/astronaut.png data/brick.png data/chelsea.png data/coffee.png data/grass.png "
    "data/hubble_deep_field.jpg data/ihc.png data/motorcycle_left.png data/retina.jpg data/rocket.jpg",
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}


def main(folder: Path) -> None:
    """Write the tiles of every photograph into a folder of its name."""
    for package, names in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit("the photographs are missing: pip install scikit-image scikit-learn")
        for path in (Path(spec.origin).parent / name for name in names.split()):
            photo = Image.open(path).convert("RGB")
            photo.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
            target = folder / path.stem
            target.mkdir(parents=True, exist_ok=True)
            for y in range(0, photo.height - SIDE + 1, SIDE):
                for x in range(0, photo.width - SIDE + 1, SIDE):
                    photo.crop((x, y, x + SIDE, y + SIDE)).save(target / f"{y:04}-{x:04}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
