"""AiM: autoregressive image generation with Mamba-2.

``import aimamba`` loads nothing heavy: each name below is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimamba.errors import AimambaError, CheckpointError, ConfigError, DataError
    from aimamba.generation import SamplingConfig, generate
    from aimamba.models import AiM, AiMConfig, VQConfig, VQModel
    from aimamba.pipeline import ModelCard, Pipeline, Prompt

__version__ = "0.2.0"

_HOMES = {
    "AiM": "aimamba.models",
    "AiMConfig": "aimamba.models",
    "AimambaError": "aimamba.errors",
    "CheckpointError": "aimamba.errors",
    "ConfigError": "aimamba.errors",
    "DataError": "aimamba.errors",
    "ModelCard": "aimamba.pipeline",
    "Pipeline": "aimamba.pipeline",
    "Prompt": "aimamba.pipeline",
    "SamplingConfig": "aimamba.generation",
    "VQConfig": "aimamba.models",
    "VQModel": "aimamba.models",
    "generate": "aimamba.generation",
}

__all__ = [
    "AiM",
    "AiMConfig",
    "AimambaError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ModelCard",
    "Pipeline",
    "Prompt",
    "SamplingConfig",
    "VQConfig",
    "VQModel",
    "generate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aimamba' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
