"""The bytes of a decoding step, and the least time that they take; needs no device."""

from collections.abc import Iterator, Sequence

import torch

from aimamba.generation.engines.recorded_step import bytes_per_row
from aimamba.models import AIM_PRESETS, AiM


def estimate(bytes_per_second: float, batches: Sequence[int]) -> Iterator[str]:
    """Describe what a guided bfloat16 step moves, for each preset and batch, and the least time it can take.

    Args:
        bytes_per_second: Memory bandwidth, read and written.
        batches: Numbers of images in a batch; each image has two rows.

    Yields:
        Lines of a table: a title, the heads, and a line for each preset and batch.
    """
    tokens = 256
    yield f"at {bytes_per_second / 1e12:.1f} TB/s; mean over {tokens} tokens; gigabytes and milliseconds per step"
    yield "preset   rows  weights  state  dual  least ms (dual)  images/s"
    for name, config in AIM_PRESETS.items():
        with torch.device("meta"):
            model = AiM(config).to(torch.bfloat16)
        mixers = sum(
            linear.weight.numel() for block in model.blocks for linear in (block.mixer.in_proj, block.mixer.out_proj)
        )
        weights = 2 * (mixers + config.vocab_size * config.width)
        state, dual = (
            config.num_blocks * sum(bytes_per_row(model, form, t) for t in range(tokens)) / tokens
            for form in ("state", "dual")
        )
        for rows in (2 * batch for batch in batches):
            modulated = 2 * rows * config.num_blocks * 3 * config.width
            least = (weights + modulated + rows * dual) / bytes_per_second
            yield (
                f"{name:8} {rows:4} {weights / 1e9:8.2f} {rows * state / 1e9:6.2f} {rows * dual / 1e9:5.2f}"
                f" {1000 * least:16.2f} {rows / 2 / (tokens * least):11.1f}"
            )
