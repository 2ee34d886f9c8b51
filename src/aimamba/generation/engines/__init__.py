"""Engines: interchangeable ways to compute the same decoding step.

====================  =============================================================================================
``plain``             the model itself, in PyTorch, on every device
``native``            a C++ kernel for CPUs, compiled on first use (``aimamba.generation.engines.native``)
``native-int8``       the same with 8-bit weights
``cuda-graphs``       Triton kernels, recorded as CUDA graphs (``aimamba.generation.engines.cuda_graphs``)
``cuda-graphs-int8``  the same with x of earlier tokens in 8 bits (``aimamba.ops.mixer.step``)
``auto``              ``cuda-graphs`` or ``native`` where it supports the model, and ``plain`` otherwise
====================  =============================================================================================

Each module of an engine has a function ``unsupported(model)`` that returns the reason why the engine cannot decode the
model on this machine, or None if it can.
"""

from typing import Literal, get_args

from aimamba.errors import ConfigError, suggest
from aimamba.generation.engines import cuda_graphs, native
from aimamba.generation.engines.cuda_graphs import CudaGraphEngine
from aimamba.generation.engines.interface import Engine, SamplingEngine
from aimamba.generation.engines.native import NativeEngine
from aimamba.models import AiM

__all__ = [
    "CudaGraphEngine",
    "Engine",
    "EngineName",
    "NativeEngine",
    "SamplingEngine",
    "check_engine",
    "make_engine",
    "resolve_engine",
]

EngineName = Literal["auto", "plain", "native", "native-int8", "cuda-graphs", "cuda-graphs-int8"]


def check_engine(name: str) -> None:
    """Check that there is an engine of this name.

    Raises:
        ConfigError: There is none; the message lists the names.
    """
    names = get_args(EngineName)
    if name not in names:
        raise ConfigError(f"engine must be one of {', '.join(names)}, got {name!r}{suggest(name, names)}")


def make_engine(model: AiM, name: str = "auto") -> Engine:
    """Make an engine for a model.

    Args:
        model: The generator, in evaluation mode. Its weights must not change while the engine is used.
        name: One of ``EngineName``.

    Raises:
        ConfigError: The name is unknown, or the engine cannot decode this model on this machine.
    """
    name = resolve_engine(model, name)
    if name == "plain":
        return model
    if name.startswith("cuda-graphs"):
        return CudaGraphEngine(model, cache="int8" if name == "cuda-graphs-int8" else "model")
    return NativeEngine(model, weights="int8" if name == "native-int8" else None)


def resolve_engine(model: AiM, name: str) -> str:
    """Return the name of the engine that ``make_engine`` makes: what ``auto`` stands for here, or the name itself.

    Raises:
        ConfigError: The name is unknown.
    """
    check_engine(name)
    return _fastest(model) if name == "auto" else name


def _fastest(model: AiM) -> EngineName:
    """Return the name of the fastest engine that decodes ``model`` without narrowing its weights."""
    if cuda_graphs.unsupported(model) is None:
        return "cuda-graphs"
    return "native" if native.unsupported(model) is None else "plain"
