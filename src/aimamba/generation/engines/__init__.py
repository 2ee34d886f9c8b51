"""Engines: different ways to compute the same decoding step, behind one seam.

===============  ==================================================================================================
``plain``        the model itself, in PyTorch, on every device
``native``       a C++ kernel for the CPU, compiled when it is first used (``aimamba.generation.engines.native``)
``native-int8``  the same with weights of 8 bits
``cuda-graphs``  Triton kernels and a recorded step for CUDA devices (``aimamba.generation.engines.cuda_graphs``)
``auto``         ``native`` or ``cuda-graphs`` where it can decode the model, else ``plain``
===============  ==================================================================================================
"""

from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from aimamba.errors import ConfigError, suggest
from aimamba.generation.engines import cuda_graphs
from aimamba.generation.engines.native import NativeEngine, unsupported
from aimamba.models import AiM

EngineName = Literal["auto", "plain", "native", "native-int8", "cuda-graphs"]


@runtime_checkable
class Engine(Protocol):
    """What decoding needs of an engine; ``AiM`` itself is one."""

    def init_state(self, batch: int, *, position_shift: int | None = None) -> Any:
        """Rows that have seen nothing yet."""

    def step(self, inputs: Tensor, state: Any) -> Tensor:
        """Take one token a row, (R,), and give the logits of its next code, (R, V); ``state`` is updated."""


@runtime_checkable
class SamplingEngine(Engine, Protocol):
    """An engine that also draws from its logits, as ``aimamba.ops.sampling.logits.guided_sample`` does."""

    def guided_sample(self, logits: Tensor, uniform: Tensor, **settings: Any) -> Tensor:
        """Guide, then draw a code for each image."""


def check_engine(name: str) -> None:
    """Refuse a name that no engine has.

    Raises:
        ConfigError: With the names that there are.
    """
    names = get_args(EngineName)
    if name not in names:
        raise ConfigError(f"engine must be one of {', '.join(names)}, got {name!r}{suggest(name, names)}")


def make_engine(model: AiM, name: str = "auto") -> Engine:
    """The engine of this name for a model, whose weights must not change while it is used.

    Raises:
        ConfigError: The name is unknown, or the engine cannot decode this model here.
    """
    check_engine(name)
    if name == "cuda-graphs" or (name == "auto" and not cuda_graphs.unsupported(model)):
        return cuda_graphs.CudaGraphEngine(model)
    if name == "plain" or (name == "auto" and unsupported(model)):
        return model
    return NativeEngine(model, weights="int8" if name == "native-int8" else None)
