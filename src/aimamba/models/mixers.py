"""Mixers by name: what stands between modulation and gate of a block."""

import math

from aimamba.models.aim_config import AiMConfig, BlockMixer
from aimamba.models.attention import Attention, FeedForward
from aimamba.models.gated_deltanet import GatedDeltaNet
from aimamba.models.mamba2 import Mamba2
from aimamba.models.mamba3 import Mamba3

Mixer = Mamba2 | Mamba3 | GatedDeltaNet | Attention | FeedForward


def make_mixer(kind: BlockMixer, config: AiMConfig) -> Mixer:
    """Build one mixer of a generator; its weights are not filled yet.

    Args:
        kind: Its name.
        config: Shape of the generator.
    """
    width, inner = config.width, config.inner
    recurrent = {"inner": inner, "state_size": config.state_size, "head_width": config.head_width}
    if kind == "mamba2":
        return Mamba2(width, **recurrent, conv_width=config.conv_width, chunk_size=config.chunk_size)
    if kind == "mamba3":
        return Mamba3(width, **recurrent, chunk_size=config.chunk_size)
    if kind == "gated-deltanet":
        return GatedDeltaNet(width, **recurrent, conv_width=config.conv_width, chunk_size=config.chunk_size)
    if kind == "attention":
        return Attention(
            width,
            head_width=config.head_width,
            rotary=config.positions == "rope",
            grid_width=math.isqrt(config.num_tokens - 1) + 1,
        )
    return FeedForward(width, hidden=round(config.feed_forward * width))
