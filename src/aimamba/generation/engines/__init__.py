"""Engines: different ways to compute the same decoding step, behind one seam.

===============  ==================================================================================================
``plain``        the model itself, in PyTorch, on every device
``native``       a C++ kernel for the CPU, compiled when it is first used (``aimamba.generation.engines.native``)
``native-int8``  the same with weights of 8 bits
``auto``         ``native`` where it can decode the model, else ``plain``
===============  ==================================================================================================
"""

from typing import Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from aimamba.errors import ConfigError, suggest
from aimamba.generation.engines.native import NativeEngine, why_not
from aimamba.models import AiM, AiMState

EngineName = Literal["auto", "plain", "native", "native-int8"]


@runtime_checkable
class Engine(Protocol):
    """What decoding needs of an engine; ``AiM`` itself is one."""

    def init_state(self, batch: int, *, position_shift: int | None = None) -> AiMState:
        """Rows that have seen nothing yet."""

    def step(self, inputs: Tensor, state: AiMState) -> Tensor:
        """Take one token a row, (R,), and give the logits of its next code, (R, V); ``state`` is updated."""


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
    if name == "plain" or (name == "auto" and why_not(model)):
        return model
    return NativeEngine(model, weights="int8" if name == "native-int8" else None)
