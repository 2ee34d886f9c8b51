"""The default size of images whose name has none, taken from the model."""

import math

from aimamba.checkpoints.checkpoint import Checkpoint
from aimamba.data.spec import parse_spec
from aimamba.models import AiM


def default_size(checkpoint: Checkpoint, downsampling: int, *images: str) -> int | None:
    """Return the side in pixels of the images that a model generates, if one of ``images`` needs a size.

    Args:
        checkpoint: The model. Only its shape is read; a tokenizer alone has no size.
        downsampling: Downsampling factor of its tokenizer.
        images: Names of sets of images, see ``aimamba.data.spec``.

    Returns:
        The side, or None if it is not needed or the model has no generator.
    """
    if "generator" not in checkpoint.parts or not any(parse_spec(name).needs_size for name in images):
        return None
    generator = AiM.from_pretrained(checkpoint, device="meta")
    return math.isqrt(generator.config.num_tokens) * downsampling
