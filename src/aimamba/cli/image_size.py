"""The size at which to draw avatars for a model, where neither their name nor --size has one."""

import math

from aimamba.data.spec import parse_spec
from aimamba.errors import CheckpointError


def default_size(model: str, downsampling: int, *images: str) -> int | None:
    """Return the side of the images that a model generates, if one of ``images`` needs it.

    Args:
        model: Folder, file or hub id; a tokenizer alone has no size.
        downsampling: Of its tokenizer.
        images: Names of sets of images.
    """
    from aimamba.models import AiM

    if not any(parse_spec(name).needs_size for name in images):
        return None
    try:
        generator = AiM.from_pretrained(model)
    except CheckpointError:  # a tokenizer alone
        return None
    return math.isqrt(generator.config.num_tokens) * downsampling
