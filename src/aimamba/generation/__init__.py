"""Drawing pictures code by code."""

from aimamba.generation.decode import generate
from aimamba.generation.sampling import SamplingConfig

__all__ = ["SamplingConfig", "generate"]
