"""Keep the top of an image and let the model finish it: ``python examples/completion.py [IMAGE [ROWS]]``.

Without IMAGE, an avatar that the model has never seen. Writes completion.png: the image, what is kept, four endings.
"""

import sys

from PIL import Image

from aimamba import Pipeline, SamplingConfig
from aimamba.data import Avatars, sheet

pipeline = Pipeline.from_pretrained("avatars-64")
size = pipeline.image_size
image = Image.open(sys.argv[1]) if len(sys.argv) > 1 else Image.fromarray(Avatars(size, "held-out", 1).image(8))
rows = int(sys.argv[2]) if len(sys.argv) > 2 else pipeline.grid // 2

endings = pipeline.complete(image, keep_rows=rows, n=4, config=SamplingConfig(cfg_scale=2.0), fit="crop")

whole = pipeline.decode(pipeline.encode(image, fit="crop"))[0].permute(1, 2, 0).numpy()
kept = whole.copy()
kept[rows * size // pipeline.grid :] = 127
shown = [Image.fromarray(whole), Image.fromarray(kept), *endings]
names = ["as tokens", "kept", *(f"seed {seed}" for seed in range(4))]
sheet([shown], column_names=names).save("completion.png")
print("completion.png")
