"""Generating images token by token."""

from aimamba.generation.engines import Engine, make_engine
from aimamba.generation.loop import generate
from aimamba.generation.sampling import SamplingConfig

__all__ = ["Engine", "SamplingConfig", "generate", "make_engine"]
