"""The size of avatars for a model, where neither their name nor --size states one."""

import math
from typing import TYPE_CHECKING

from aimamba.data.spec import parse_spec

if TYPE_CHECKING:
    from aimamba.checkpoints.checkpoint import Checkpoint


def default_size(checkpoint: "Checkpoint", downsampling: int, *images: str) -> int | None:
    """Return the side of the images that a model generates, if one of ``images`` needs it.

    Args:
        checkpoint: The model; a tokenizer alone has no size.
        downsampling: Downsampling factor of its tokenizer.
        images: Names of sets of images.
    """
    from aimamba.models import AiM

    if "generator" not in checkpoint.parts or not any(parse_spec(name).needs_size for name in images):
        return None
    generator = AiM.from_pretrained(checkpoint, device="meta")
    return math.isqrt(generator.config.num_tokens) * downsampling
