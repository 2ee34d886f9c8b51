"""What the decoding loop needs of an engine."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from aimamba.models import DecodingState


@runtime_checkable
class Engine(Protocol):
    """Computes decoding steps. ``AiM`` itself is one."""

    def init_state(self, batch: int, *, position_shift: int | None = None) -> DecodingState:
        """Return the state of ``batch`` rows at position 0; see ``AiM.init_state``."""
        ...

    def step(self, inputs: Tensor, state: Any) -> Tensor:
        """Feed one token of each row, (R,), and return the logits of its next code, (R, V).

        Where all rows are at position 0, ``inputs`` may be their class vectors (R, D) in place of labels.
        ``state`` is one that this engine made, and is updated.
        """
        ...


@runtime_checkable
class SamplingEngine(Engine, Protocol):
    """An engine with its own version of ``aimamba.ops.sampling.logits.guided_sample``."""

    def guided_sample(self, logits: Tensor, uniform: Tensor, **settings: Any) -> Tensor:
        """Apply guidance to the logits, then sample a code for each image."""
        ...
