"""The two models: the generator ``AiM`` and the tokenizer ``VQModel``, with their configs and presets."""

from aimamba.models.aim import AiM
from aimamba.models.aim_config import AIM_PRESETS, AiMConfig
from aimamba.models.state import AiMState, DecodingState
from aimamba.models.vq import VQModel, VQOutput
from aimamba.models.vq_config import VQ_PRESETS, VQConfig

__all__ = [
    "AIM_PRESETS",
    "VQ_PRESETS",
    "AiM",
    "AiMConfig",
    "AiMState",
    "DecodingState",
    "VQConfig",
    "VQModel",
    "VQOutput",
]
