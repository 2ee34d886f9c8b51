"""The two networks: the generator ``AiM`` and the tokenizer ``VQModel``, each beside its config and presets."""

from aimamba.models.aim import AIM_PRESETS, AiM, AiMConfig
from aimamba.models.state import AiMState
from aimamba.models.vq import VQ_PRESETS, VQConfig, VQModel, VQOutput

__all__ = ["AIM_PRESETS", "VQ_PRESETS", "AiM", "AiMConfig", "AiMState", "VQConfig", "VQModel", "VQOutput"]
